-- name: insert_installation
insert into installation (organization_id, secret_check, secret_version, created_at)
values ($1, $2, $3, $4)
on conflict (singleton) do nothing
returning organization_id;

-- name: insert_organization
insert into organizations (id, name, created_at) values ($1, $2, $3);

-- name: installation
select organization_id, secret_check, secret_version from installation;

-- name: advance
update installation set secret_check = $2, secret_version = $3
where secret_version = $1
returning secret_version;
