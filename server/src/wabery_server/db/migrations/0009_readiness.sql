-- Each process writes a row now and then, to notice when the database takes no writes.
create table readiness (
    slot        bigint primary key,
    checked_at  timestamptz not null
);
