-- The content of messages is kept, and a message that cannot be handled is kept sealed until a retry succeeds.
alter table messages add column handled_by text not null default 'app';
alter table messages add column content json;
alter table messages add column context json;
alter table messages add column referral json;
alter table messages add column content_truncated boolean not null default false;
alter table messages add column placeholder boolean not null default false;
alter table messages add column event_id text collate "C";
create table failed_messages (
    project_id      text collate "C" not null,
    message_id      text collate "C" not null,
    object          bytea not null,
    secret_version  integer not null,
    failed_at       timestamptz not null,
    primary key (project_id, message_id)
);
create table unroutable_changes (
    provider         text not null,
    phone_number_id  text collate "C" not null,
    reason           text not null,
    changes          bigint not null,
    first_at         timestamptz not null,
    last_at          timestamptz not null,
    primary key (provider, phone_number_id, reason)
);
