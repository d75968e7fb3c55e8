-- name: insert_endpoint
insert into webhook_endpoints (id, project_id, is_default, url, secrets, secret_version, events, created_at)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (id) do nothing;

-- name: endpoints
select id, project_id, is_default, url, events, secrets, secret_version, disabled_at, disabled_reason, created_at
from webhook_endpoints
where project_id = any($1::text[])
order by project_id, id;

-- name: listeners, hot
select project_id, id, events, disabled_at is not null as disabled
from webhook_endpoints
where project_id = any($1::text[]) and url is not null
order by project_id, id;

-- name: default_endpoint
select id, project_id, is_default, url, events, secrets, secret_version, disabled_at, disabled_reason, created_at
from webhook_endpoints
where project_id = $1 and is_default;

-- name: set_url
update webhook_endpoints set url = $3, disabled_at = null, disabled_reason = null
where project_id = $1 and id = $2;

-- name: set_secrets
update webhook_endpoints set secrets = $3, secret_version = $4
where project_id = $1 and id = $2;

-- name: disable_endpoint
update webhook_endpoints set disabled_at = $4, disabled_reason = $3
where project_id = $1 and id = $2 and disabled_at is null
returning id;
