-- name: any_root_of_key
-- The actor of an act is a key of any project.
select coalesce(p.root_project_id, p.id) as root_project_id
from api_keys k
join projects p on p.id = k.project_id
where k.id = $1;

-- name: lock_root
select id from projects where id = $1 for no key update;

-- name: any_test_projects_of
-- Created from one project, by keys of any of them.
select count(*) as count from projects where root_project_id = $1 and not livemode;

-- name: insert_project
insert into projects (id, organization_id, name, livemode, prefilled_text, prefilled_texts, publishable_expires_in,
    secret_expires_in, supersede, unsigned_references, on_identity_linked, on_reference_linked, references_per_contact,
    created_at, root_project_id)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
on conflict (id) do nothing
returning id;

-- name: projects, hot
select id, organization_id, name, livemode, prefilled_text, prefilled_texts, publishable_expires_in,
    secret_expires_in, supersede, unsigned_references, on_identity_linked, on_reference_linked, references_per_contact,
    created_at
from projects
where id = any($1::text[]);

-- name: any_projects
select id, organization_id, name, livemode, prefilled_text, prefilled_texts, publishable_expires_in,
    secret_expires_in, supersede, unsigned_references, on_identity_linked, on_reference_linked, references_per_contact,
    created_at
from projects
where $1::text is null or id < $1
order by id desc limit $2;

-- name: update_project
update projects
set name = coalesce($2, name),
    prefilled_text = coalesce($3, prefilled_text),
    prefilled_texts = coalesce($4, prefilled_texts),
    publishable_expires_in = coalesce($5, publishable_expires_in),
    secret_expires_in = coalesce($6, secret_expires_in),
    supersede = coalesce($7, supersede),
    unsigned_references = coalesce($8, unsigned_references),
    on_identity_linked = coalesce($9, on_identity_linked),
    on_reference_linked = coalesce($10, on_reference_linked),
    references_per_contact = coalesce($11, references_per_contact)
where id = $1
returning id, organization_id, name, livemode, prefilled_text, prefilled_texts, publishable_expires_in,
    secret_expires_in, supersede, unsigned_references, on_identity_linked, on_reference_linked, references_per_contact,
    created_at;
