-- name: channels
select id, project_id, provider, name, phone_number_id, display_phone_number, waba_id, portfolio_id, sandbox,
    created_at, deleted_at
from channels
where project_id = $1 and deleted_at is null
order by id;

-- name: any_channel_by_number
-- Not by project: the number is what names the project.
select id, project_id, provider, name, phone_number_id, display_phone_number, waba_id, portfolio_id, sandbox,
    created_at, deleted_at, credentials, secret_version
from channels
where provider = $1 and phone_number_id = $2 and deleted_at is null;

-- name: any_credentials
-- Not by project: what comes to the shared webhook URL may be for any of them.
select id, credentials, secret_version
from channels
where provider = $1 and deleted_at is null
order by id;

-- name: record_use
insert into api_key_uses (project_id, api_key_id, last_used_at)
values ($1, $2, $3)
on conflict (project_id, api_key_id) do update
    set last_used_at = excluded.last_used_at
    where api_key_uses.last_used_at < excluded.last_used_at;
