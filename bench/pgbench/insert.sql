-- The statement of intents/intent.sql `insert`, one row a transaction.
\set n random(1, 9000000000000000000)
insert into registration_intents (project_id, id, status, customer_reference, metadata, reference_trust, channel_id,
    api_key_id, locale, token_hash, token_prefix, secret_version, created_at, expires_at)
values (:project, 'reg_' || lpad(:n::text, 26, '0'), 'PENDING', 'pgbench-' || :n::text, '{"plan":"starter"}', 'server',
    :channel, :key, null, sha256(int8send(:n::bigint)), 'abcdef', 1, now(), now() + interval '1 day')
on conflict (project_id, id) do nothing;
