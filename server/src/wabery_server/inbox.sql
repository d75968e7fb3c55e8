-- name: seen, hot
select m.project_id, m.channel_id, m.provider_message_id
from (values ($1::text, $2::text, $3::text)) w (project_id, channel_id, provider_message_id)
cross join lateral (
    select m.project_id, m.channel_id, m.provider_message_id
    from messages m
    where m.project_id = w.project_id and m.channel_id = w.channel_id and m.provider_message_id = w.provider_message_id
    limit 1) m;

-- name: insert, hot
-- A message that was received before is a unique violation: run again.
insert into messages (project_id, id, channel_id, provider_message_id, kind, type, contact_id, conversation_id, text,
    forwarded, sent_at, received_at, attempt, registration_intent_id, error, raw)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16);
