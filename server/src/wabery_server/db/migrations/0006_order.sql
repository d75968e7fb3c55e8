-- Moments of one contact and of one customer reference never run backwards, and a stored identifier no longer depends on
-- a setting. The rows that an older server wrote out of order are repaired first; 0007 checks all rows.
alter table contacts add column latest_at timestamptz;
alter table contacts add column duplicate_of text collate "C";
-- squawk-ignore require-concurrent-index-creation
create index contacts_duplicates on contacts (project_id, id) where duplicate_of is not null;
update links set ended_at = created_at where ended_at < created_at;
alter table links add constraint links_in_order check (ended_at >= created_at) not valid;
update registration_intents set ended_at = greatest(ended_at, created_at), joined_at = greatest(joined_at, created_at)
where ended_at < created_at or joined_at < created_at;
alter table registration_intents
    add constraint registration_intents_in_order check (ended_at >= created_at and joined_at >= created_at) not valid;
-- squawk-ignore require-concurrent-index-creation
create index links_ended on links (project_id, customer_reference, ended_at) where ended_at is not null;

create table identity_scopes (
    project_id  text collate "C" not null references projects (id),
    scope       text collate "C" not null,
    family      text[] not null,
    primary key (project_id, scope)
);
-- What the channels use today, and every portfolio that the audit trail has seen set.
insert into identity_scopes (project_id, scope, family)
with recursive used (project_id, a, b) as (
    select project_id, waba_id, coalesce(portfolio_id, waba_id) from channels
    union
    select c.project_id, c.waba_id, t.detail ->> 'portfolio_id'
    from channels c join audit t on t.project_id = c.project_id and t.target = c.id
    where t.action = 'channel.updated' and t.detail ->> 'portfolio_id' is not null),
both_ways (project_id, a, b) as (select project_id, a, b from used union select project_id, b, a from used),
reached (project_id, scope, other) as (
    select project_id, a, a from both_ways
    union
    select r.project_id, r.scope, w.b from reached r join both_ways w on w.project_id = r.project_id and w.a = r.other)
select project_id, scope, array_agg(other order by other) from reached group by project_id, scope;
