-- name: insert_event, hot
insert into events (project_id, id, type, contact_id, registration_intent_id, body, created_at)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict do nothing;

-- name: insert_delivery, hot
insert into deliveries (project_id, id, event_id, endpoint_id, state, due_at, created_at)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict do nothing;

-- name: any_due_queues, hot
-- For the worker, which serves every project; unlocked, because claiming decides. Of what became due last: a new event is
-- found at once, however many endpoints have deliveries waiting. It reads $2 rows, and so no more than those are named.
select d.project_id, d.endpoint_id, min(d.due_at) as due_at, count(*) as deliveries
from (
    select d.project_id, d.endpoint_id, d.due_at from deliveries d
    where d.due_at <= $1
    order by d.due_at desc
    limit $2) d
group by d.project_id, d.endpoint_id;

-- name: any_queues_after
-- For the worker, which serves every project. Visits the queues after one in the order of the index, each by a look-up of
-- its first row: the cost depends on the number of queues visited, not on the number of rows in them.
with recursive visited as (
    (select d.project_id, d.endpoint_id, d.due_at
     from deliveries d
     where d.due_at is not null and (d.project_id, d.endpoint_id) > ($1::text, $2::text)
     order by d.project_id, d.endpoint_id, d.due_at
     limit 1)
    union all
    select following.project_id, following.endpoint_id, following.due_at
    from visited v
    cross join lateral (
        select d.project_id, d.endpoint_id, d.due_at
        from deliveries d
        where d.due_at is not null and (d.project_id, d.endpoint_id) > (v.project_id, v.endpoint_id)
        order by d.project_id, d.endpoint_id, d.due_at
        limit 1) following)
select v.project_id, v.endpoint_id, v.due_at
from visited v
limit $3;

-- name: claim, hot
-- Written so that every plan is a good one: it is kept, and may have been made while the tables were empty.
-- `= any(array(…))` and `limit 1` leave the planner nothing but the primary key, and endpoint and project are read once.
-- The left joins keep a delivery in sight whose event or endpoint is gone: it is held instead of staying due.
with due as (
    select d.id, d.event_id, d.attempts, d.due_at, d.created_at as recorded_at
    from deliveries d
    where d.project_id = $1 and d.endpoint_id = $2 and d.due_at <= $3
    order by d.due_at
    limit $5
    for update skip locked),
leased as (
    update deliveries d set due_at = $4
    where d.project_id = $1 and d.id = any(array(select due.id from due))),
target as materialized (
    select w.is_default, w.url, w.events, w.secrets, w.secret_version, w.disabled_at, w.disabled_reason, w.created_at,
        p.livemode, coalesce(p.root_project_id, p.id) as root_project_id
    from projects p
    left join webhook_endpoints w on w.project_id = $1 and w.id = $2
    where p.id = $1)
select due.id, due.event_id, due.attempts, due.due_at, due.recorded_at, e.type, e.body, t.*
from due
left join lateral (
    select e.type, e.body from events e where e.project_id = $1 and e.id = due.event_id limit 1) e on true
left join target t on true
order by due.due_at;

-- name: settle, hot
-- Only while the lease is ours: whoever claims the row after us moves due_at on, and whoever holds it removes it.
-- `is not distinct from`, which no index serves: a batch shares one lease, and the primary key names the row.
update deliveries d
set state = w.state, attempts = d.attempts + w.attempts, due_at = w.due_at, ended_at = w.ended_at
from (values ($1::text, $2::text, $3::timestamptz, $4::text, $5::integer, $6::timestamptz, $7::timestamptz))
    w (project_id, id, lease, state, attempts, due_at, ended_at)
where d.project_id = w.project_id and d.id = w.id and d.due_at is not distinct from w.lease
returning d.project_id, d.id;

-- name: any_queues_to_resume
-- For the worker, which serves every project. Visits the queues with held deliveries, as any_queues_after does.
with recursive visited as (
    (select d.project_id, d.endpoint_id
     from deliveries d
     where d.state = 'held' and (d.project_id, d.endpoint_id) > ($1::text, $2::text)
     order by d.project_id, d.endpoint_id
     limit 1)
    union all
    select following.project_id, following.endpoint_id
    from visited v
    cross join lateral (
        select d.project_id, d.endpoint_id
        from deliveries d
        where d.state = 'held' and (d.project_id, d.endpoint_id) > (v.project_id, v.endpoint_id)
        order by d.project_id, d.endpoint_id
        limit 1) following)
select v.project_id, v.endpoint_id, coalesce(w.url is not null and w.disabled_at is null, false) as is_back
from (select v.project_id, v.endpoint_id from visited v limit $3) v
left join webhook_endpoints w on w.project_id = v.project_id and w.id = v.endpoint_id;

-- name: resume
-- Due since they were written, so that the queue's own order sends the oldest first. What has lost its event stays held;
-- $4 rows are looked at, of which those come back in id order.
with looked_at as materialized (
    select h.id, h.event_id
    from deliveries h
    where h.project_id = $1 and h.endpoint_id = $2 and h.state = 'held' and h.id > $5
    order by h.id
    limit $4
    for update of h skip locked),
resumed as (
    update deliveries d set state = 'pending', due_at = least(d.created_at, $3)
    where d.project_id = $1 and d.id = any(array(
        select h.id from looked_at h
        where exists (select from events e where e.project_id = $1 and e.id = h.event_id)))
    returning d.id)
select h.id, r.id is not null as resumed
from looked_at h
left join resumed r on r.id = h.id
order by h.id;

-- name: insert_attempt, hot
insert into delivery_attempts (project_id, delivery_id, number, outcome, status, error, response_body, address,
    elapsed_ms, attempted_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
on conflict do nothing;

-- part: asked
row_number() over (order by e.id desc) as number,
        ($6::text is null or e.type = $6) and ($7::text is null or e.contact_id = $7)
        and ($8::text is null or e.registration_intent_id = $8) as matches

-- part: page
e.id >= $2 and e.id < $3
    order by e.id desc
    limit $4) e
where e.matches or e.number = $4
order by e.id desc
limit $5

-- name: listed
-- See db/lists.py. The statements differ in what leads them to their index.
select e.id, e.type, e.body, e.number, e.matches
from (
    select e.id, e.type, e.body, {asked}
    from events e
    where e.project_id = $1 and {page};

-- name: listed_by_contact
select e.id, e.type, e.body, e.number, e.matches
from (
    select e.id, e.type, e.body, {asked}
    from events e
    where e.project_id = $1 and e.contact_id = $7 and {page};

-- name: listed_by_intent
select e.id, e.type, e.body, e.number, e.matches
from (
    select e.id, e.type, e.body, {asked}
    from events e
    where e.project_id = $1 and e.registration_intent_id = $8 and {page};

-- name: find
select e.id, e.type, e.body from events e where e.project_id = $1 and e.id = $2;
