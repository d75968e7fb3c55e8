-- name: insert_installation
insert into installation (organization_id, secret_check, secret_version, created_at)
values ($1, $2, $3, $4)
on conflict (singleton) do nothing
returning organization_id;

-- name: insert_organization
insert into organizations (id, name, created_at) values ($1, $2, $3);

-- name: installation
select organization_id from installation;

-- name: registered_versions
select version, secret_check from secret_versions order by version;

-- name: register_version
insert into secret_versions (version, secret_check, created_at) values ($1, $2, $3)
on conflict (version) do nothing
returning version;

-- name: unregister_version
delete from secret_versions where version = $1;

-- name: advance
-- For programs from before secret_versions, which refuse a database with a newer secret.
update installation set secret_check = $1, secret_version = $2;

-- name: any_needs
-- Not by project: all projects share the installation's secret.
select
    (select count(*) from channels where secret_version = $1 and deleted_at is null) as channels,
    (select count(*) from webhook_endpoints where secret_version = $1) as webhook_endpoints,
    (select count(*) from failed_messages where secret_version = $1) as failed_messages,
    i.many as pending_intents, i.until as intents_until,
    k.many as idempotency_answers, k.until as answers_until
from (
    select count(*) as many, max(expires_at) as until
    from registration_intents where secret_version = $1 and status = 'PENDING'
) i, (
    select count(*) as many, max(expires_at) as until
    from idempotency_keys where secret_version = $1 and expires_at > $2
) k;

-- name: any_sealed
-- Not by project: all projects share the installation's secret.
select s.kind, s.project_id, s.id, s.sealed, s.secret_version
from (
    select 'channels' as kind, project_id, id, credentials as sealed, secret_version
    from channels where deleted_at is null and secret_version <> $1
    union all
    select 'webhook_endpoints' as kind, project_id, id, secrets as sealed, secret_version
    from webhook_endpoints where secret_version <> $1
    union all
    select 'failed_messages' as kind, project_id, message_id as id, object as sealed, secret_version
    from failed_messages where secret_version <> $1
) s
where (s.kind, s.id) > ($2, $3)
order by s.kind, s.id limit $4;

-- name: reseal_channel
update channels set credentials = $4, secret_version = $5
where project_id = $1 and id = $2 and credentials = $3
returning id;

-- name: reseal_failed_message
update failed_messages set object = $4, secret_version = $5
where project_id = $1 and message_id = $2 and object = $3
returning message_id as id;

-- name: reseal_endpoint
update webhook_endpoints set secrets = $4, secret_version = $5
where project_id = $1 and id = $2 and secrets = $3
returning id;
