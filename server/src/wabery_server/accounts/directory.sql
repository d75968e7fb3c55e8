-- name: channels
select id, project_id, provider, name, phone_number_id, display_phone_number, waba_id, portfolio_id, sandbox,
    created_at, deleted_at
from channels
where project_id = any($1::text[]) and deleted_at is null
order by id;

-- name: any_channels_by_number
-- Not by project: the number is what names the project.
select c.id, c.project_id, c.provider, c.name, c.phone_number_id, c.display_phone_number, c.waba_id, c.portfolio_id,
    c.sandbox, c.created_at, c.deleted_at, c.credentials, c.secret_version, s.family
from (values ($1::text, $2::text)) w (provider, phone_number_id)
join channels c on c.provider = w.provider and c.phone_number_id = w.phone_number_id and c.deleted_at is null
left join identity_scopes s on s.project_id = c.project_id and s.scope = c.waba_id;

-- name: any_credentials
-- Not by project: what comes to the shared webhook URL may be for any of them.
select id, provider, credentials, secret_version
from channels
where provider = any($1::text[]) and deleted_at is null
order by id;

-- name: record_use
insert into api_key_uses (project_id, api_key_id, last_used_at)
values ($1, $2, $3)
on conflict (project_id, api_key_id) do update
    set last_used_at = excluded.last_used_at
    where api_key_uses.last_used_at < excluded.last_used_at;
