-- name: holder, hot
select i.project_id, i.kind, i.scope, i.value, i.contact_id
from identifiers i
where i.project_id = $1 and i.kind = $2 and i.scope = $3 and i.value = $4 and i.superseded_at is null;

-- name: lock, hot
select c.id from contacts c where c.project_id = $1 and c.id = $2 for update;

-- name: find, hot
select c.project_id, c.id, c.username, c.profile_name, c.country, i.kind, i.scope, i.value
from contacts c
left join identifiers i
  on i.project_id = c.project_id and i.contact_id = c.id and i.superseded_at is null
where c.project_id = $1 and c.id = $2
order by i.created_at;

-- name: insert_contact, hot
insert into contacts (project_id, id, username, profile_name, country, created_at)
values ($1, $2, $3, $4, $5, $6);

-- name: rename, hot
update contacts set username = $3, profile_name = $4, country = $5
where project_id = $1 and id = $2;

-- name: supersede_identifier, hot
update identifiers set superseded_at = $5
where project_id = $1 and kind = $2 and scope = $3 and value = $4 and superseded_at is null;

-- name: insert_identifier, hot
-- A person may get an identifier back. One that somebody else holds by now is a unique violation: run again.
insert into identifiers (project_id, contact_id, kind, scope, value, created_at)
values ($1, $2, $3, $4, $5, $6)
on conflict (project_id, contact_id, kind, scope, value) do update
    set superseded_at = null, created_at = excluded.created_at;

-- name: conversation, hot
select v.project_id, v.contact_id, v.channel_id, v.id
from conversations v
where v.project_id = $1 and v.contact_id = $2 and v.channel_id = $3;

-- name: newest_conversation, hot
select v.project_id, v.contact_id, v.channel_id, v.id
from conversations v
where v.project_id = $1 and v.contact_id = $2
order by v.id desc limit 1;

-- name: insert_conversation, hot
insert into conversations (project_id, id, channel_id, contact_id, created_at)
values ($1, $2, $3, $4, $5)
on conflict do nothing
returning id;

-- part: link
l.project_id, l.id, l.contact_id, l.customer_reference, l.registration_intent_id, l.reference_trust, l.metadata,
    l.created_at

-- name: links_of_contact, hot
select {link} from links l where l.project_id = $1 and l.contact_id = $2 and l.ended_at is null;

-- name: links_of_reference, hot
select {link} from links l where l.project_id = $1 and l.customer_reference = $2 and l.ended_at is null;

-- name: insert_link, hot
insert into links (project_id, id, contact_id, customer_reference, registration_intent_id, reference_trust, metadata,
    created_at)
values ($1, $2, $3, $4, $5, $6, $7, $8);

-- name: refresh_link, hot
update links set registration_intent_id = $3, reference_trust = $4, metadata = $5
where project_id = $1 and id = $2 and ended_at is null;

-- name: end_link, hot
update links set ended_at = $4, end_reason = $3
where project_id = $1 and id = $2 and ended_at is null
returning id;
