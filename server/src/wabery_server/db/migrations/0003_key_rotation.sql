-- After a rotation the value before the current one goes on working until its end. The table is small, so its rows
-- are checked and indexed at once.
alter table api_keys add column previous_hash bytea;
alter table api_keys add column previous_ends_at timestamptz;
-- squawk-ignore require-concurrent-index-creation
create unique index api_keys_by_previous_hash on api_keys (previous_hash);
alter table api_keys
    -- squawk-ignore constraint-missing-not-valid
    add constraint api_keys_previous check ((previous_hash is null) = (previous_ends_at is null));
