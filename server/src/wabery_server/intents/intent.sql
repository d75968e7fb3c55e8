-- part: columns
i.project_id, i.id, i.status, i.customer_reference, i.metadata, i.reference_trust, i.channel_id, i.api_key_id,
    i.locale, i.secret_version, i.created_at, i.expires_at, i.ended_at, i.rejection_reason, i.contact_id,
    i.message_id, i.joined_at, i.already_linked, i.opened_at, i.opened_via

-- name: insert, hot
-- Inserts an intent while its reference has room, and returns nothing where it has none. One statement decides, so the
-- usual mint needs no transaction. It does not see its own rows: mints for one reference must come in separate
-- statements. `ended_at is null` names the index of pending intents, so ended ones cost nothing. Trusted intents have an
-- empty client_hash. Anonymous ones also need a reference that is far from crowded; `crowd` counts exactly.
insert into registration_intents (project_id, id, status, customer_reference, metadata, reference_trust, channel_id,
    api_key_id, locale, token_hash, token_prefix, secret_version, created_at, expires_at, client_hash)
select w.project_id, w.id, 'PENDING', w.customer_reference, w.metadata, w.reference_trust, w.channel_id, w.api_key_id,
    w.locale, w.token_hash, w.token_prefix, w.secret_version, w.created_at, w.expires_at, w.client_hash
from (values ($1::text, $2::text, $3::text, $4::json, $5::text, $6::text, $7::text, $8::text, $9::bytea, $10::text,
        $11::integer, $12::timestamptz, $13::timestamptz, $14::bytea, $15::integer, $16::integer))
    w (project_id, id, customer_reference, metadata, reference_trust, channel_id, api_key_id, locale, token_hash,
        token_prefix, secret_version, created_at, expires_at, client_hash, most_pending, most_anonymous)
where w.most_pending > (
    select count(*) from registration_intents p
    where p.project_id = w.project_id and p.customer_reference = w.customer_reference
      and p.client_hash = w.client_hash and p.ended_at is null and p.expires_at > w.created_at
      and (p.reference_trust = 'unverified') = (w.client_hash <> ''))
  and (w.client_hash = '' or w.most_anonymous > (
    select count(*) from (
        select from registration_intents p
        where p.project_id = w.project_id and p.customer_reference = w.customer_reference
          and p.client_hash > '' and p.ended_at is null and p.expires_at > w.created_at
        limit w.most_anonymous) anonymous))
on conflict (project_id, id) do nothing
returning id;

-- name: pending
-- The pending intents that count together with one of this client_hash, oldest first. Those that another transaction
-- holds are about to end: they are skipped, so that a mint never waits for a locked row.
select {columns}
from registration_intents i
where i.project_id = $1 and i.customer_reference = $2 and i.client_hash = $3 and i.ended_at is null
  and i.expires_at > $4 and (i.reference_trust = 'unverified') = ($3 <> '')
order by i.created_at, i.id
for update of i skip locked;

-- name: crowd
-- How many anonymous intents count for a reference, up to $4, and when the first of them expires. One network (the first
-- half of client_hash) counts at most $5 times: the walk reads so many rows of each and goes on to the next.
with recursive walk (past, counted, first_expiry) as (
    select ''::bytea, 0, null::timestamptz
    union all
    select substring(next.client_hash for 4) || '\xffffffff', w.counted + here.counted,
        least(w.first_expiry, here.first_expiry)
    from walk w
    cross join lateral (
        select p.client_hash from registration_intents p
        where p.project_id = $1 and p.customer_reference = $2 and p.client_hash > w.past and p.ended_at is null
          and p.expires_at > $3
        order by p.client_hash
        limit 1) next
    cross join lateral (
        select count(*)::integer as counted, min(counted_here.expires_at) as first_expiry
        from (
            select p.expires_at from registration_intents p
            where p.project_id = $1 and p.customer_reference = $2 and p.client_hash >= next.client_hash
              and p.client_hash <= substring(next.client_hash for 4) || '\xffffffff' and p.ended_at is null
              and p.expires_at > $3
            limit $5) counted_here) here
    where w.counted < $4)
select counted, first_expiry from walk order by counted desc limit 1;

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
    select {columns}, i.token_hash, i.reuse_count, i.reuse_told_at, k.revoked_at, c.deleted_at, c.waba_id,
        c.portfolio_id, s.family, l.link_id, l.link_contact_id,
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
    message_id = w.message_id, joined_at = w.joined_at, already_linked = w.already_linked, client_hash = ''
from (values ($1::text, $2::text, $3::text, $4::timestamptz, $5::text, $6::text, $7::text, $8::timestamptz, $9::boolean))
    w (project_id, id, status, ended_at, rejection_reason, contact_id, message_id, joined_at, already_linked)
where i.project_id = w.project_id and i.id = w.id and i.status not in ('JOINED', 'REJECTED', 'EXPIRED')
  and (w.joined_at is null or not exists (
      select from links l
      where l.project_id = i.project_id and l.customer_reference = i.customer_reference and l.ended_at > w.joined_at));

-- name: note_reuse, hot
-- The rows are locked, so the counts are absolute and a repeated transaction writes the same.
update registration_intents i
set reuse_count = w.reuse_count, reuse_told_at = w.reuse_told_at
from (values ($1::text, $2::text, $3::integer, $4::timestamptz)) w (project_id, id, reuse_count, reuse_told_at)
where i.project_id = w.project_id and i.id = w.id;

-- part: asked
row_number() over (order by i.id desc) as number,
        ($6::text is null
            or $6 = case when i.status = 'PENDING' and i.expires_at <= $10 then 'EXPIRED' else i.status end)
        and ($7::text is null or i.customer_reference = $7) and ($8::text is null or i.contact_id = $8)
        and ($9::text is null or i.channel_id = $9) as matches

-- part: page
i.id >= $2 and i.id < $3
    order by i.id desc
    limit $4) i
where i.matches or i.number = $4
order by i.id desc
limit $5

-- name: listed
-- See db/lists.py. The statements differ in what leads them to their index.
select i.*
from (
    select {columns}, {asked}
    from registration_intents i
    where i.project_id = $1 and {page};

-- name: listed_by_reference
select i.*
from (
    select {columns}, {asked}
    from registration_intents i
    where i.project_id = $1 and i.customer_reference = $7 and {page};

-- name: listed_by_contact
select i.*
from (
    select {columns}, {asked}
    from registration_intents i
    where i.project_id = $1 and i.contact_id = $8 and {page};

-- name: listed_by_status
-- By status or channel or both: the newest of each channel of the project and of each of the statuses $11.
select i.*
from (
    select c.id, s.status
    from channels c
    cross join unnest($11::text[]) s (status)
    where c.project_id = $1 and ($9::text is null or c.id = $9)) w
cross join lateral (
    select {columns}, {asked}
    from registration_intents i
    where i.project_id = $1 and i.channel_id = w.id and i.status = w.status and {page};

-- name: in_grace
-- Those that a read shows as expired before the sweeper has come by: at most $5, the last to expire.
select i.*
from (
    select {columns}, 0 as number,
        ($6::text is null or i.customer_reference = $6) and ($7::text is null or i.contact_id = $7)
        and ($8::text is null or i.channel_id = $8) and i.id >= $2 and i.id < $3 as matches
    from registration_intents i
    where i.project_id = $1 and i.status = 'PENDING' and i.expires_at <= $4
    order by i.expires_at desc
    limit $5) i
where i.matches
order by i.id desc;

-- name: extend
update registration_intents set expires_at = $3
where project_id = $1 and id = $2 and status = 'PENDING'
returning id;

-- name: note_opened
update registration_intents i set opened_at = coalesce(i.opened_at, $4), opened_via = $3
where i.project_id = $1 and i.id = $2
returning {columns};

-- name: any_project_due
-- Off the hot path: which projects have something for the sweeper. One index probe a project, whatever is due there.
select p.id
from projects p
cross join lateral (
    select from registration_intents i
    where i.project_id = p.id and i.status = 'PENDING' and i.expires_at <= $1
    limit 1) i
limit $2;

-- name: due
select {columns}
from registration_intents i
where i.project_id = $1 and i.status = 'PENDING' and i.expires_at <= $2
order by i.expires_at
limit $3
for update of i skip locked;

-- name: pending_of
-- Of these keys and channels, among the next $3 pending intents of the project in the order of their expiry, and where
-- those end. Those of one moment stay together, so that the next look can begin after them.
select i.id, i.expires_at, (i.api_key_id = any($4::text[]) or i.channel_id = any($5::text[])) as matches
from (
    select i.id, i.expires_at, i.api_key_id, i.channel_id
    from registration_intents i
    where i.project_id = $1 and i.status = 'PENDING' and i.expires_at > $2
    order by i.expires_at
    fetch first $3 rows with ties) i
order by i.expires_at;

-- name: lock_pending
-- One that is locked is ended by a later sweep, or by `judge` when its token is used.
select {columns}
from registration_intents i
where i.project_id = $1 and i.id = any($2::text[]) and i.status not in ('JOINED', 'REJECTED', 'EXPIRED')
order by i.id
for update of i skip locked;

-- name: any_ended_with_pending
-- Off the hot path: keys and channels that ended and whose pending intents have not all been looked for.
(select k.project_id, k.id, k.revoked_at as ended_at, true as is_key
from api_keys k
where k.revoked_at is not null and k.cleared_at is null
limit $1)
union all
(select c.project_id, c.id, c.deleted_at, false
from channels c
where c.deleted_at is not null and c.cleared_at is null
limit $1);
