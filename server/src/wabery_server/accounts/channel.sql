-- name: insert_channel
-- Nothing comes back when the number belongs to a channel already, or this very row was written by an earlier try.
insert into channels (id, project_id, provider, name, phone_number_id, display_phone_number, waba_id, portfolio_id,
    sandbox, credentials, secret_version, created_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
on conflict do nothing
returning id;

-- name: list_channels
select id, project_id, provider, name, phone_number_id, display_phone_number, waba_id, portfolio_id, sandbox,
    created_at, deleted_at
from channels
where project_id = $1 and deleted_at is null and ($2::text is null or id < $2)
order by id desc limit $3;

-- name: find_channel
select id, project_id, provider, name, phone_number_id, display_phone_number, waba_id, portfolio_id, sandbox,
    created_at, deleted_at
from channels
where project_id = $1 and id = $2 and deleted_at is null;

-- name: find_deleted_channel
select id, project_id, provider, name, phone_number_id, display_phone_number, waba_id, portfolio_id, sandbox,
    created_at, deleted_at
from channels
where project_id = $1 and id = $2 and deleted_at is not null;

-- name: lock_channel
select id from channels where project_id = $1 and id = $2 for update;

-- name: lock_scopes
-- One change of a project's scopes at a time. Inserts that refer to the project go on.
select id from projects where id = $1 for no key update;

-- name: families
select scope, family from identity_scopes where project_id = $1 and scope = any($2::text[]);

-- name: share_scopes
insert into identity_scopes (project_id, scope, family)
values ($1, $2, $3)
on conflict (project_id, scope) do update set family = excluded.family;

-- name: credentials
select credentials, secret_version from channels where project_id = $1 and id = $2 and deleted_at is null;

-- name: update_channel
update channels
set name = $3, display_phone_number = $4, portfolio_id = $5, credentials = $6, secret_version = $7
where project_id = $1 and id = $2 and deleted_at is null;

-- name: delete_channel
update channels set deleted_at = $3, credentials = ''
where project_id = $1 and id = $2 and deleted_at is null
returning id, project_id, provider, name, phone_number_id, display_phone_number, waba_id, portfolio_id, sandbox,
    created_at, deleted_at;

-- name: clear_channel
update channels set cleared_at = $3 where project_id = $1 and id = $2;
