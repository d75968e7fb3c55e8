-- Plans are kept, and every index begins with project_id. To the planner all projects are therefore one: where each has
-- only a row or two, it would otherwise see no difference between an index that names the row and one that reads the
-- whole project, and go on with the worse while the project grows. Takes effect when a table is next analysed.
alter table api_key_uses alter column project_id set (n_distinct = 1);
alter table registration_intents alter column project_id set (n_distinct = 1);
alter table contacts alter column project_id set (n_distinct = 1);
alter table identifiers alter column project_id set (n_distinct = 1);
alter table conversations alter column project_id set (n_distinct = 1);
alter table links alter column project_id set (n_distinct = 1);
alter table messages alter column project_id set (n_distinct = 1);
alter table events alter column project_id set (n_distinct = 1);
alter table deliveries alter column project_id set (n_distinct = 1);
alter table delivery_attempts alter column project_id set (n_distinct = 1);
alter table idempotency_keys alter column project_id set (n_distinct = 1);
