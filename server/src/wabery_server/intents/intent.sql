-- part: columns
i.project_id, i.id, i.status, i.customer_reference, i.metadata, i.reference_trust, i.channel_id, i.api_key_id,
    i.locale, i.secret_version, i.created_at, i.expires_at, i.ended_at, i.rejection_reason, i.contact_id,
    i.message_id, i.joined_at, i.already_linked, i.opened_at, i.opened_via

-- name: insert, hot
-- Written only while its reference and trust class has room, and nothing comes back where it has none: one statement
-- decides, so that it needs no look before and, alone, no transaction around it. It does not see its own rows, so each
-- reference and class must come once. A transaction that runs again after a commit it did not hear of meets its own
-- rows. `not in` keeps the planner from the index of all that is pending.
insert into registration_intents (project_id, id, status, customer_reference, metadata, reference_trust, channel_id,
    api_key_id, locale, token_hash, token_prefix, secret_version, created_at, expires_at)
select w.project_id, w.id, 'PENDING', w.customer_reference, w.metadata, w.reference_trust, w.channel_id, w.api_key_id,
    w.locale, w.token_hash, w.token_prefix, w.secret_version, w.created_at, w.expires_at
from (values ($1::text, $2::text, $3::text, $4::json, $5::text, $6::text, $7::text, $8::text, $9::bytea, $10::text,
        $11::integer, $12::timestamptz, $13::timestamptz, $14::integer))
    w (project_id, id, customer_reference, metadata, reference_trust, channel_id, api_key_id, locale, token_hash,
        token_prefix, secret_version, created_at, expires_at, most_pending)
where w.most_pending > (
    select count(*) from registration_intents p
    where p.project_id = w.project_id and p.customer_reference = w.customer_reference
      and p.reference_trust = w.reference_trust and p.status not in ('JOINED', 'REJECTED', 'EXPIRED')
      and p.expires_at > w.created_at)
on conflict (project_id, id) do nothing
returning id;

-- name: pending
-- What is pending for a reference and trust class, oldest first.
select {columns}
from registration_intents i
where i.project_id = $1 and i.customer_reference = $2 and i.reference_trust = $3
  and i.status = 'PENDING' and i.expires_at > $4
order by i.id
for update of i;

-- name: find, hot
select i.*
from (values ($1::text, $2::text)) w (project_id, id)
cross join lateral (
    select {columns} from registration_intents i where i.project_id = w.project_id and i.id = w.id limit 1) i;

-- name: lock
select {columns}
from registration_intents i
where i.project_id = $1 and i.id = $2
for update of i;

-- name: lock_by_token, hot
-- In the order of the rows that are asked for, each with the active link of its reference and the scopes of its channel's
-- identities. The link may have changed while the lock was waited for: a write that relies on it fails on its unique index,
-- or finds the row no longer active.
select i.*
from (values ($1::text, $2::bytea)) w (project_id, token_hash)
cross join lateral (
    select {columns}, i.token_hash, k.revoked_at, c.deleted_at, c.waba_id, c.portfolio_id, s.family, l.link_id, l.link_contact_id,
        l.link_registration_intent_id, l.link_reference_trust, l.link_metadata, l.link_created_at
    from registration_intents i
    left join api_keys k on k.project_id = i.project_id and k.id = i.api_key_id
    left join channels c on c.project_id = i.project_id and c.id = i.channel_id
    left join identity_scopes s on s.project_id = i.project_id and s.scope = c.waba_id
    left join lateral (
        select l.id as link_id, l.contact_id as link_contact_id,
            l.registration_intent_id as link_registration_intent_id, l.reference_trust as link_reference_trust, l.metadata as link_metadata, l.created_at as link_created_at
        from links l
        where l.project_id = i.project_id and l.customer_reference = i.customer_reference and l.ended_at is null
        limit 1) l on true
    where i.project_id = w.project_id and i.token_hash = w.token_hash
    for update of i) i;

-- name: settle, hot
-- Decides every race: only one transaction finds the row still pending. It says so with `not in`: where few intents are
-- pending, the planner would read all of them for each row that it could look up by its key. A join is refused when a link
-- of its reference ended later than the join's moment; the join's own link keeps others from adding one.
update registration_intents i
set status = w.status, ended_at = w.ended_at, rejection_reason = w.rejection_reason, contact_id = w.contact_id,
    message_id = w.message_id, joined_at = w.joined_at, already_linked = w.already_linked
from (values ($1::text, $2::text, $3::text, $4::timestamptz, $5::text, $6::text, $7::text, $8::timestamptz, $9::boolean))
    w (project_id, id, status, ended_at, rejection_reason, contact_id, message_id, joined_at, already_linked)
where i.project_id = w.project_id and i.id = w.id and i.status not in ('JOINED', 'REJECTED', 'EXPIRED')
  and (w.joined_at is null or not exists (
      select from links l
      where l.project_id = i.project_id and l.customer_reference = i.customer_reference and l.ended_at > w.joined_at));

-- name: listed
select {columns}
from registration_intents i
where i.project_id = $1
  and ($2::text is null or i.id < $2)
  and ($3::text is null
       or $3 = case when i.status = 'PENDING' and i.expires_at <= $10 then 'EXPIRED' else i.status end)
  and ($4::text is null or i.customer_reference = $4)
  and ($5::text is null or i.contact_id = $5)
  and ($6::text is null or i.channel_id = $6)
  and ($7::timestamptz is null or i.created_at >= $7)
  and ($8::timestamptz is null or i.created_at < $8)
order by i.id desc
limit $9;

-- name: extend
update registration_intents set expires_at = $3
where project_id = $1 and id = $2 and status = 'PENDING'
returning id;

-- name: note_opened
update registration_intents i set opened_at = coalesce(i.opened_at, $4), opened_via = $3
where i.project_id = $1 and i.id = $2
returning {columns};

-- name: any_project_due
-- Off the hot path: which projects have something for the sweeper. One index probe a project.
select p.id from projects p
where exists (
    select 1 from registration_intents i
    where i.project_id = p.id and i.status = 'PENDING' and i.expires_at <= $1)
limit $2;

-- name: due
select {columns}
from registration_intents i
where i.project_id = $1 and i.status = 'PENDING' and i.expires_at <= $2
order by i.expires_at
limit $3
for update of i skip locked;

-- name: pending_of_key
select {columns}
from registration_intents i
where i.project_id = $1 and i.status = 'PENDING' and i.api_key_id = $2
order by i.id
limit $3
for update of i;

-- name: pending_of_channel
select {columns}
from registration_intents i
where i.project_id = $1 and i.status = 'PENDING' and i.channel_id = $2
order by i.id
limit $3
for update of i;

-- name: any_ended_with_pending
-- Off the hot path: keys and channels that ended since $1 and still have pending intents.
select k.project_id, k.id, true as is_key
from api_keys k
where k.revoked_at > $1 and exists (
    select 1 from registration_intents i
    where i.project_id = k.project_id and i.status = 'PENDING' and i.api_key_id = k.id)
union all
select c.project_id, c.id, false
from channels c
where c.deleted_at > $1 and exists (
    select 1 from registration_intents i
    where i.project_id = c.project_id and i.status = 'PENDING' and i.channel_id = c.id)
limit $2;
