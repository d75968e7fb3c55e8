-- The statement of intents/intent.sql `insert`, one row a transaction.
\set n random(1, 9000000000000000000)
insert into registration_intents (project_id, id, status, customer_reference, metadata, reference_trust, channel_id,
    api_key_id, locale, token_hash, token_prefix, secret_version, created_at, expires_at)
select w.project_id, w.id, 'PENDING', w.customer_reference, w.metadata, w.reference_trust, w.channel_id, w.api_key_id,
    w.locale, w.token_hash, w.token_prefix, w.secret_version, w.created_at, w.expires_at
from (values (:project::text, 'reg_' || lpad(:n::text, 26, '0'), 'pgbench-' || :n::text, '{"plan":"starter"}'::json,
        'server', :channel::text, :key::text, null::text, sha256(int8send(:n::bigint)), 'abcdef', 1, now(),
        now() + interval '1 day', 5))
    w (project_id, id, customer_reference, metadata, reference_trust, channel_id, api_key_id, locale, token_hash,
        token_prefix, secret_version, created_at, expires_at, most_pending)
where w.most_pending > (
    select count(*) from registration_intents p
    where p.project_id = w.project_id and p.customer_reference = w.customer_reference
      and p.reference_trust = w.reference_trust and p.status not in ('JOINED', 'REJECTED', 'EXPIRED')
      and p.expires_at > w.created_at)
on conflict (project_id, id) do nothing
returning id;
