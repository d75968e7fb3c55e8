-- name: insert_key
insert into api_keys (id, project_id, kind, name, hash, public_key, last4, scopes, allowed_origins, created_at,
    expires_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
on conflict (id) do nothing
returning id;

-- name: list_keys
select k.id, k.project_id, k.kind, k.name, k.public_key, k.last4, k.scopes, k.allowed_origins, k.created_at,
    k.expires_at, k.revoked_at, k.previous_ends_at, u.last_used_at
from api_keys k
left join api_key_uses u on u.project_id = k.project_id and u.api_key_id = k.id
where k.project_id = $1 and ($2::text is null or k.id < $2)
order by k.id desc limit $3;

-- name: find_key
select k.id, k.project_id, k.kind, k.name, k.public_key, k.last4, k.scopes, k.allowed_origins, k.created_at,
    k.expires_at, k.revoked_at, k.previous_ends_at, u.last_used_at
from api_keys k
left join api_key_uses u on u.project_id = k.project_id and u.api_key_id = k.id
where k.project_id = $1 and k.id = $2;

-- name: any_live_keys
-- Not by project: the key is what names the project.
select hash, id, project_id, kind, name, public_key, last4, scopes, allowed_origins, created_at, expires_at, revoked_at,
    previous_ends_at
from api_keys
where hash = any($1::bytea[]) and revoked_at is null;

-- name: any_replaced_keys
-- Not by project: the key is what names the project.
select previous_hash as hash, id, project_id, kind, name, public_key, last4, scopes, allowed_origins, created_at,
    expires_at, revoked_at, previous_ends_at
from api_keys
where previous_hash = any($1::bytea[]) and revoked_at is null;

-- name: lock_key
select k.id, k.project_id, k.kind, k.name, k.public_key, k.last4, k.scopes, k.allowed_origins, k.created_at,
    k.expires_at, k.revoked_at, k.previous_ends_at, u.last_used_at
from api_keys k
left join api_key_uses u on u.project_id = k.project_id and u.api_key_id = k.id
where k.project_id = $1 and k.id = $2
for update of k;

-- name: update_key
update api_keys
set name = coalesce($3, name), allowed_origins = $4, expires_at = $5
where project_id = $1 and id = $2;

-- name: rotate_key
-- A value that is there already was put there by an earlier try.
update api_keys
set previous_hash = hash, previous_ends_at = $6, hash = $3, public_key = $4, last4 = $5
where project_id = $1 and id = $2 and revoked_at is null and hash <> $3
returning id;

-- name: revoke_key
update api_keys set revoked_at = $3
where project_id = $1 and id = $2 and revoked_at is null
returning id;

-- name: clear_key
update api_keys set cleared_at = $3 where project_id = $1 and id = $2;
