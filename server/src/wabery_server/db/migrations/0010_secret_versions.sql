-- The versions of the installation's secret that are in use, so that a process that lacks one is refused at its start.
create table secret_versions (
    version       integer primary key,
    secret_check  bytea,
    created_at    timestamptz not null
);

insert into secret_versions (version, secret_check, created_at)
select secret_version, secret_check, created_at from installation;

-- Versions from before an earlier change of the secret, whose check value was not kept.
insert into secret_versions (version, created_at)
select distinct s.secret_version, i.created_at
from installation i, (
    select secret_version from channels where deleted_at is null
    union
    select secret_version from webhook_endpoints
) s
where s.secret_version < i.secret_version;
