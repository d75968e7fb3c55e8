-- One intent by its key, as a poll reads it.
\set n random(1, 9000000000000000000)
select i.project_id, i.id, i.status, i.customer_reference, i.metadata, i.reference_trust, i.channel_id, i.api_key_id,
    i.locale, i.secret_version, i.created_at, i.expires_at, i.ended_at, i.rejection_reason, i.contact_id,
    i.message_id, i.joined_at, i.already_linked
from registration_intents i
where i.project_id = :project and i.id > 'reg_' || lpad(:n::text, 26, '0')
order by i.id limit 1;
