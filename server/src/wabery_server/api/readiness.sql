-- name: mark
insert into readiness (slot, checked_at) values ($1, $2)
on conflict (slot) do update set checked_at = excluded.checked_at;
