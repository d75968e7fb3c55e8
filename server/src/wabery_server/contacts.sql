-- name: holders, hot
select i.project_id, i.kind, i.scope, i.value, i.contact_id
from unnest($1::text[], $2::text[], $3::text[], $4::text[]) as wanted (project_id, kind, scope, value)
join identifiers i
  on i.project_id = wanted.project_id and i.kind = wanted.kind
 and i.scope = wanted.scope and i.value = wanted.value
where i.superseded_at is null;

-- name: lock, hot
select c.id
from unnest($1::text[], $2::text[]) as wanted (project_id, id)
join contacts c on c.project_id = wanted.project_id and c.id = wanted.id
order by c.project_id, c.id
for update of c;

-- name: find, hot
select c.project_id, c.id, c.username, c.profile_name, c.country, i.kind, i.scope, i.value
from unnest($1::text[], $2::text[]) as wanted (project_id, id)
join contacts c on c.project_id = wanted.project_id and c.id = wanted.id
left join identifiers i
  on i.project_id = c.project_id and i.contact_id = c.id and i.superseded_at is null
order by c.project_id, c.id, i.created_at;

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
insert into identifiers (project_id, contact_id, kind, scope, value, created_at)
values ($1, $2, $3, $4, $5, $6)
on conflict do nothing
returning contact_id;

-- name: conversations, hot
select v.project_id, v.contact_id, v.channel_id, v.id
from unnest($1::text[], $2::text[], $3::text[]) as wanted (project_id, contact_id, channel_id)
join conversations v
  on v.project_id = wanted.project_id and v.contact_id = wanted.contact_id and v.channel_id = wanted.channel_id;

-- name: newest_conversations, hot
select distinct on (v.project_id, v.contact_id) v.project_id, v.contact_id, v.channel_id, v.id
from unnest($1::text[], $2::text[]) as wanted (project_id, contact_id)
join conversations v on v.project_id = wanted.project_id and v.contact_id = wanted.contact_id
order by v.project_id, v.contact_id, v.id desc;

-- name: insert_conversation, hot
insert into conversations (project_id, id, channel_id, contact_id, created_at)
values ($1, $2, $3, $4, $5)
on conflict do nothing
returning id;

-- name: active_links, hot
select l.project_id, l.id, l.contact_id, l.customer_reference, l.registration_intent_id, l.reference_trust,
    l.metadata, l.created_at
from unnest($1::text[], $2::text[]) as people (project_id, contact_id)
join links l on l.project_id = people.project_id and l.contact_id = people.contact_id
where l.ended_at is null
union all
select l.project_id, l.id, l.contact_id, l.customer_reference, l.registration_intent_id, l.reference_trust,
    l.metadata, l.created_at
from unnest($3::text[], $4::text[]) as named (project_id, customer_reference)
join links l on l.project_id = named.project_id and l.customer_reference = named.customer_reference
where l.ended_at is null;

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
