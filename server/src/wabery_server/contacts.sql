-- name: holder, hot
-- A row for each scope: a look-up by an array of scopes costs four times as much.
select i.project_id, i.kind, i.scope, i.value, i.contact_id
from (values ($1::text, $2::text, $3::text, $4::text)) w (project_id, kind, scope, value)
cross join lateral (
    select i.project_id, i.kind, i.scope, i.value, i.contact_id
    from identifiers i
    where i.project_id = w.project_id and i.kind = w.kind and i.scope = w.scope and i.value = w.value
      and i.superseded_at is null
    limit 1) i;

-- name: lock, hot
-- In the order of the rows that are asked for.
select c.id
from (values ($1::text, $2::text)) w (project_id, id)
cross join lateral (select c.id from contacts c where c.project_id = w.project_id and c.id = w.id for update of c) c;

-- name: find, hot
select c.*
from (values ($1::text, $2::text)) w (project_id, id)
cross join lateral (
    select c.project_id, c.id, c.username, c.profile_name, c.country, c.latest_at, c.merged_into, c.duplicate_of,
        i.kind, i.scope, i.value
    from contacts c
    left join identifiers i
      on i.project_id = c.project_id and i.contact_id = c.id and i.superseded_at is null
    where c.project_id = w.project_id and c.id = w.id
    order by i.created_at) c;

-- name: insert_contact, hot
insert into contacts (project_id, id, username, profile_name, country, created_at)
values ($1, $2, $3, $4, $5, $6);

-- name: rename, hot
update contacts c set username = w.username, profile_name = w.profile_name, country = w.country
from (values ($1::text, $2::text, $3::text, $4::text, $5::text)) w (project_id, id, username, profile_name, country)
where c.project_id = w.project_id and c.id = w.id;

-- name: mark, hot
-- Of locked contacts: merged into another, or linked like another that is the same person.
update contacts c set merged_into = w.merged_into, duplicate_of = w.duplicate_of
from (values ($1::text, $2::text, $3::text, $4::text)) w (project_id, id, merged_into, duplicate_of)
where c.project_id = w.project_id and c.id = w.id;

-- name: advance, hot
update contacts c set latest_at = w.at
from (values ($1::text, $2::text, $3::timestamptz)) w (project_id, id, at)
where c.project_id = w.project_id and c.id = w.id;

-- name: duplicates
select c.id, c.duplicate_of
from contacts c
where c.project_id = $1 and c.duplicate_of is not null and c.merged_into is null
order by c.id desc
limit $2;

-- name: supersede_identifier, hot
update identifiers i set superseded_at = w.at
from (values ($1::text, $2::text, $3::text, $4::text, $5::timestamptz)) w (project_id, kind, scope, value, at)
where i.project_id = w.project_id and i.kind = w.kind and i.scope = w.scope and i.value = w.value
  and i.superseded_at is null;

-- name: insert_identifier, hot
-- Of a contact just made. Fewer rows than were given: another contact holds one of them by now.
insert into identifiers (project_id, contact_id, kind, scope, value, created_at)
values ($1, $2, $3, $4, $5, $6)
on conflict do nothing;

-- name: regain_identifier, hot
-- Of a contact that may have had it before.
insert into identifiers (project_id, contact_id, kind, scope, value, created_at)
values ($1, $2, $3, $4, $5, $6)
on conflict (project_id, contact_id, kind, scope, value) do update
    set superseded_at = null, created_at = excluded.created_at;

-- name: conversation, hot
select v.project_id, v.contact_id, v.channel_id, v.id
from (values ($1::text, $2::text, $3::text)) w (project_id, contact_id, channel_id)
cross join lateral (
    select v.project_id, v.contact_id, v.channel_id, v.id
    from conversations v
    where v.project_id = w.project_id and v.contact_id = w.contact_id and v.channel_id = w.channel_id
    limit 1) v;

-- name: newest_conversation, hot
select v.project_id, v.contact_id, v.channel_id, v.id
from (values ($1::text, $2::text)) w (project_id, contact_id)
cross join lateral (
    select v.project_id, v.contact_id, v.channel_id, v.id
    from conversations v
    where v.project_id = w.project_id and v.contact_id = w.contact_id
    order by v.id desc limit 1) v;

-- name: insert_conversation, hot
-- Fewer rows than were given: another process has opened one meanwhile.
insert into conversations (project_id, id, channel_id, contact_id, created_at)
values ($1, $2, $3, $4, $5)
on conflict do nothing;

-- name: move_conversations, hot
-- Of a merged contact, on the channels where the other has none. Both are locked.
update conversations v set contact_id = w.into_id
from (values ($1::text, $2::text, $3::text)) w (project_id, contact_id, into_id)
where v.project_id = w.project_id and v.contact_id = w.contact_id and not exists (
    select from conversations o
    where o.project_id = w.project_id and o.contact_id = w.into_id and o.channel_id = v.channel_id);

-- name: links_of_contact, hot
-- `offset 0` does what `limit 1` does elsewhere: each row is looked up by its key, whatever the planner thinks of the table.
select l.*
from (values ($1::text, $2::text)) w (project_id, contact_id)
cross join lateral (
    select l.project_id, l.id, l.contact_id, l.customer_reference, l.registration_intent_id, l.reference_trust, l.metadata,
        l.created_at
    from links l
    where l.project_id = w.project_id and l.contact_id = w.contact_id and l.ended_at is null
    offset 0) l;

-- name: ended_at, hot
select w.project_id, w.customer_reference, l.ended_at
from (values ($1::text, $2::text)) w (project_id, customer_reference)
cross join lateral (
    select l.ended_at from links l
    where l.project_id = w.project_id and l.customer_reference = w.customer_reference and l.ended_at is not null
    order by l.ended_at desc limit 1) l;

-- name: insert_link, hot
insert into links (project_id, id, contact_id, customer_reference, registration_intent_id, reference_trust, metadata,
    created_at)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict do nothing;

-- name: refresh_link, hot
update links l
set registration_intent_id = w.registration_intent_id, reference_trust = w.reference_trust, metadata = w.metadata
from (values ($1::text, $2::text, $3::text, $4::text, $5::json))
    w (project_id, id, registration_intent_id, reference_trust, metadata)
where l.project_id = w.project_id and l.id = w.id and l.ended_at is null;

-- name: end_link, hot
update links l set ended_at = w.at, end_reason = w.reason
from (values ($1::text, $2::text, $3::text, $4::timestamptz)) w (project_id, id, reason, at)
where l.project_id = w.project_id and l.id = w.id and l.ended_at is null;
