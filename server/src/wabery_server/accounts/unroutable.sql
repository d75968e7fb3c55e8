-- name: note
-- At most $7 rows, so that made-up numbers do not fill the table.
insert into unroutable_changes as u (provider, phone_number_id, reason, changes, first_at, last_at)
select $1, $2, $3, $4, $5, $6
where (select count(*) from unroutable_changes) < $7
   or exists (
       select 1 from unroutable_changes k where k.provider = $1 and k.phone_number_id = $2 and k.reason = $3)
on conflict (provider, phone_number_id, reason) do update
    set changes = u.changes + excluded.changes, last_at = greatest(u.last_at, excluded.last_at);

-- name: forget
delete from unroutable_changes where last_at < $1;

-- name: any_unroutable
-- Without those of a number that has got its channel since.
select u.provider, u.phone_number_id, u.reason, u.changes, u.first_at, u.last_at
from unroutable_changes u
where u.last_at >= $1
  and not (u.reason = 'unknown_number' and exists (
      select 1 from channels c
      where c.provider = u.provider and c.phone_number_id = u.phone_number_id and c.deleted_at is null))
order by u.last_at desc, u.phone_number_id
limit $2;
