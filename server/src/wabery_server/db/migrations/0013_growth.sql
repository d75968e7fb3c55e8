-- Revoked keys and deleted channels are looked at until what was minted for them has ended, and then never again. Nothing
-- is pending for longer than seven days. The tables are small, so their rows are indexed at once.
alter table api_keys add column cleared_at timestamptz;
alter table channels add column cleared_at timestamptz;
update api_keys set cleared_at = revoked_at
where revoked_at < (select max(created_at) - interval '8 days' from audit);
update channels set cleared_at = deleted_at
where deleted_at < (select max(created_at) - interval '8 days' from audit);
-- squawk-ignore require-concurrent-index-creation
create index api_keys_to_clear on api_keys (id) where revoked_at is not null and cleared_at is null;
-- squawk-ignore require-concurrent-index-creation
create index channels_live on channels (project_id, id) where deleted_at is null;
-- squawk-ignore require-concurrent-index-creation
create index channels_to_clear on channels (id) where deleted_at is not null and cleared_at is null;
-- squawk-ignore require-concurrent-index-creation
create index failed_messages_newest on failed_messages (message_id);
