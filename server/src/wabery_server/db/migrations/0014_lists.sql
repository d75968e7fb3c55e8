-- outside a transaction
-- Lists find their rows by an index, whatever they are filtered by.
-- squawk-ignore ban-concurrent-index-creation-in-transaction
create index concurrently if not exists registration_intents_by_channel
    on registration_intents (project_id, channel_id, status, id) where channel_id is not null;
-- squawk-ignore ban-concurrent-index-creation-in-transaction
create index concurrently if not exists events_by_contact on events (project_id, contact_id, id)
    where contact_id is not null;
-- squawk-ignore ban-concurrent-index-creation-in-transaction
create index concurrently if not exists events_by_intent on events (project_id, registration_intent_id, id)
    where registration_intent_id is not null;
