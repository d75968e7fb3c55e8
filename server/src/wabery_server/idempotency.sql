-- name: insert, hot
-- An answer whose 24 hours are over makes room for a new one.
insert into idempotency_keys (project_id, api_key_id, call, key, request_hash, status, answer, secret_version,
    object_ids, created_at, expires_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
on conflict (project_id, api_key_id, call, key) do update
    set request_hash = excluded.request_hash, status = excluded.status, answer = excluded.answer,
        secret_version = excluded.secret_version, object_ids = excluded.object_ids,
        created_at = excluded.created_at, expires_at = excluded.expires_at
    where idempotency_keys.expires_at <= excluded.created_at
returning project_id, api_key_id, call, key;

-- name: find, hot
-- Whether it still counts is asked outside, where it does not tempt the planner to the index of what expires.
select k.project_id, k.api_key_id, k.call, k.key, k.request_hash, k.status, k.answer, k.secret_version
from (values ($1::text, $2::text, $3::text, $4::text, $5::timestamptz)) w (project_id, api_key_id, call, key, at)
cross join lateral (
    select k.*
    from idempotency_keys k
    where k.project_id = w.project_id and k.api_key_id = w.api_key_id and k.call = w.call and k.key = w.key
    limit 1) k
where k.expires_at > w.at;

-- name: any_project_expired
-- Off the hot path: which projects have something to prune. One index probe a project, whatever has expired there.
select p.id
from projects p
cross join lateral (
    select from idempotency_keys k where k.project_id = p.id and k.expires_at <= $1 limit 1) k
limit $2;

-- name: release
delete from idempotency_keys k
using (values ($1::text, $2::text, $3::text, $4::text)) w (project_id, api_key_id, call, key)
where k.project_id = w.project_id and k.api_key_id = w.api_key_id and k.call = w.call and k.key = w.key;

-- name: prune
delete from idempotency_keys
where project_id = $1
  and (api_key_id, call, key) in (
      select old.api_key_id, old.call, old.key from idempotency_keys old
      where old.project_id = $1 and old.expires_at <= $2
      order by old.expires_at limit $3)
returning key;
