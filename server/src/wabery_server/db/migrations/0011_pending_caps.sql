-- Pending intents are counted by customer reference and, for anonymous ones, by a hash of the client's address. The index
-- holds pending intents only; the table is read once to build it, and takes no mints meanwhile.
alter table registration_intents add column client_hash bytea not null default '';
alter table registration_intents add column reuse_count integer not null default 0;
alter table registration_intents add column reuse_told_at timestamptz;
-- squawk-ignore require-concurrent-index-creation
create index registration_intents_caps on registration_intents (project_id, customer_reference, client_hash, expires_at)
    where ended_at is null;
