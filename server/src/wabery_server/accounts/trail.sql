-- name: audit
insert into audit (id, organization_id, project_id, actor, action, target, detail, created_at)
values ($1, coalesce($2, (select organization_id from projects where id = $3)), $3, $4, $5, $6, $7, $8);

-- name: audit_trail
select id, organization_id, project_id, actor, action, target, detail, created_at
from audit
where project_id = $1 and ($2::text is null or id < $2)
order by id desc limit $3;
