-- name: received_before, hot
select m.project_id, m.channel_id, m.provider_message_id, m.id, m.placeholder, m.event_id,
    f.message_id is not null as failed
from (values ($1::text, $2::text, $3::text)) w (project_id, channel_id, provider_message_id)
cross join lateral (
    select m.project_id, m.channel_id, m.provider_message_id, m.id, m.placeholder, m.event_id
    from messages m
    where m.project_id = w.project_id and m.channel_id = w.channel_id and m.provider_message_id = w.provider_message_id
    limit 1) m
left join failed_messages f on f.project_id = m.project_id and f.message_id = m.id;

-- name: insert, hot
-- Fewer rows than were given: some were received before.
insert into messages (project_id, id, channel_id, provider_message_id, kind, type, contact_id, conversation_id, text,
    forwarded, sent_at, received_at, attempt, registration_intent_id, error, raw, handled_by, content, context, referral,
    content_truncated, placeholder, event_id)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23)
on conflict (project_id, channel_id, provider_message_id) do nothing;

-- name: replace, hot
-- A placeholder gets its content. One that has been replaced or erased meanwhile is left alone.
update messages m
set kind = w.kind, type = w.type, contact_id = w.contact_id, conversation_id = w.conversation_id, text = w.text,
    forwarded = w.forwarded, sent_at = w.sent_at, received_at = w.received_at, attempt = w.attempt,
    registration_intent_id = w.registration_intent_id, error = w.error, raw = w.raw, handled_by = w.handled_by,
    content = w.content, context = w.context, referral = w.referral, content_truncated = w.content_truncated,
    placeholder = w.placeholder, event_id = w.event_id
from (values ($1::text, $2::text, $3::text, $4::text, $5::text, $6::text, $7::text, $8::text, $9::text, $10::boolean,
        $11::timestamptz, $12::timestamptz, $13::text, $14::text, $15::text, $16::json, $17::text, $18::json, $19::json,
        $20::json, $21::boolean, $22::boolean, $23::text))
    w (project_id, id, channel_id, provider_message_id, kind, type, contact_id, conversation_id, text, forwarded, sent_at,
        received_at, attempt, registration_intent_id, error, raw, handled_by, content, context, referral,
        content_truncated, placeholder, event_id)
where m.project_id = w.project_id and m.id = w.id and m.placeholder;

-- name: insert_failed
insert into failed_messages (project_id, message_id, object, secret_version, failed_at)
values ($1, $2, $3, $4, $5)
on conflict (project_id, message_id) do nothing;

-- name: delete_failed, hot
delete from failed_messages f
using (values ($1::text, $2::text)) w (project_id, message_id)
where f.project_id = w.project_id and f.message_id = w.message_id;

-- name: any_failed
-- Off the hot path: for the operator of the whole installation, newest first.
select m.project_id, m.id, m.channel_id, m.provider_message_id, m.type, m.error, m.sent_at, m.received_at
from failed_messages f
join messages m on m.project_id = f.project_id and m.id = f.message_id
where $1::text is null or f.message_id < $1
order by f.message_id desc
limit $2;

-- name: failed_object
select object, secret_version from failed_messages where project_id = $1 and message_id = $2;

-- name: note_error
update messages set error = $3 where project_id = $1 and id = $2 and placeholder;

-- name: settle_placeholder
update messages set placeholder = false where project_id = $1 and id = $2;
