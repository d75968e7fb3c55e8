-- The whole data model on one page. A new database is made from this file; an old one by migrations/*.sql, and a test
-- compares the two. Ids, times and random values come from the application; there are no triggers and no sequences.
--
-- Small tables are read everywhere and rarely written. Every key of a hot table begins with project_id, so that a
-- project's rows can live together on one node. Hot tables have no foreign keys: each would cost a join another index
-- probe and a row lock, and whatever names a contact is written in the transaction that has just met it.

create table schema_migrations (
    version     integer primary key,
    name        text not null,
    applied_at  timestamptz not null
);

-- Small tables ------------------------------------------------------------------------------------------------------

-- One row: which secret and which organization this database belongs to.
create table installation (
    singleton        boolean primary key default true check (singleton),
    organization_id  text collate "C" not null,
    secret_check     bytea not null,
    secret_version   integer not null,
    created_at       timestamptz not null
);

-- The versions of the installation's secret that are in use.
create table secret_versions (
    version       integer primary key,
    secret_check  bytea,                                    -- identifies the secret; null: from before this table
    created_at    timestamptz not null
);

create table organizations (
    id          text collate "C" primary key,
    name        text not null,
    created_at  timestamptz not null
);

-- A tenant, with its policy.
create table projects (
    id                      text collate "C" primary key,
    organization_id         text collate "C" not null references organizations (id),
    name                    text not null,
    livemode                boolean not null,
    prefilled_text          text not null,
    prefilled_texts         json not null,                  -- {"de": "Mein Konto verbinden: {token}"}
    publishable_expires_in  integer not null check (publishable_expires_in between 60 and 604800),
    secret_expires_in       integer not null check (secret_expires_in between 60 and 604800),
    supersede               boolean not null,
    unsigned_references     text not null check (unsigned_references in ('accept', 'refuse')),
    on_identity_linked      text not null check (on_identity_linked in ('reject', 'replace', 'allow')),
    on_reference_linked     text not null check (on_reference_linked in ('replace', 'reject')),
    references_per_contact  integer not null check (references_per_contact between 1 and 1000),
    created_at              timestamptz not null,
    root_project_id         text collate "C"                -- the one whose keys created it, directly or not; null: none did
);

create index projects_by_root on projects (root_project_id, livemode) where root_project_id is not null;

create table api_keys (
    id                text collate "C" primary key,
    project_id        text collate "C" not null references projects (id),
    kind              text not null check (kind in ('secret', 'publishable')),
    name              text not null,
    hash              bytea not null unique,                -- SHA-256 of the key
    public_key        text check ((public_key is not null) = (kind = 'publishable')),
    last4             text not null,
    scopes            text[] not null,
    allowed_origins   text[] not null,                      -- publishable only; empty = any
    created_at        timestamptz not null,
    expires_at        timestamptz,
    revoked_at        timestamptz,
    previous_hash     bytea,                                -- of the value before the last rotation
    previous_ends_at  timestamptz,                          -- until then it works too
    cleared_at        timestamptz,                          -- revoked, and what it minted has been ended
    check (kind = 'secret' or scopes = '{}'),
    check (kind = 'publishable' or allowed_origins = '{}'),
    constraint api_keys_previous check ((previous_hash is null) = (previous_ends_at is null))
);
create unique index api_keys_by_previous_hash on api_keys (previous_hash);
create index api_keys_to_clear on api_keys (id) where revoked_at is not null and cleared_at is null;
create index api_keys_by_project on api_keys (project_id, id);

-- One WhatsApp number at one provider, belonging to exactly one project.
create table channels (
    id                    text collate "C" primary key,
    project_id            text collate "C" not null references projects (id),
    provider              text not null,
    name                  text not null,
    phone_number_id       text collate "C" not null,
    display_phone_number  text not null check (display_phone_number ~ '^[1-9][0-9]{4,14}$'),
    waba_id               text collate "C" not null,
    portfolio_id          text collate "C",
    sandbox               boolean not null,
    credentials           bytea not null,                   -- sealed: app secrets, verify token, access token
    secret_version        integer not null,
    created_at            timestamptz not null,
    deleted_at            timestamptz,
    cleared_at            timestamptz                       -- deleted, and what was minted for it has been ended
);
create unique index channels_by_number on channels (provider, phone_number_id) where deleted_at is null;
create index channels_by_project on channels (project_id, id);
create index channels_live on channels (project_id, id) where deleted_at is null;
create index channels_to_clear on channels (id) where deleted_at is not null and cleared_at is null;

-- Where a BSUID means one person in a project: each WABA and portfolio that its channels have ever used, with all those
-- that share their people with it, itself included. Rows are only added to.
create table identity_scopes (
    project_id  text collate "C" not null references projects (id),
    scope       text collate "C" not null,
    family      text[] not null,
    primary key (project_id, scope)
);

-- Signed webhook changes that no channel could receive: a mistyped number id, another app's secret. For `doctor`.
create table unroutable_changes (
    provider         text not null,
    phone_number_id  text collate "C" not null,             -- as the webhook named it; '' when it named none
    reason           text not null,
    changes          bigint not null,
    first_at         timestamptz not null,
    last_at          timestamptz not null,
    primary key (provider, phone_number_id, reason)
);

-- A message that could not be handled because of its own content, until a retry succeeds.
create table failed_messages (
    project_id      text collate "C" not null,
    message_id      text collate "C" not null,
    object          bytea not null,                         -- sealed: the provider's whole object, with a live token perhaps
    secret_version  integer not null,
    failed_at       timestamptz not null,
    primary key (project_id, message_id)
);
create index failed_messages_newest on failed_messages (message_id);

create table webhook_endpoints (
    id               text collate "C" primary key,
    project_id       text collate "C" not null references projects (id),
    is_default       boolean not null,
    url              text,                                  -- null: nothing is sent
    secrets          bytea not null,                        -- sealed list, the current one first
    secret_version   integer not null,
    events           text[],                                -- null: all but the opt-in ones
    disabled_at      timestamptz,
    disabled_reason  text,
    created_at       timestamptz not null,
    check ((disabled_at is null) = (disabled_reason is null))
);
create index webhook_endpoints_by_project on webhook_endpoints (project_id, id);
create unique index webhook_endpoints_default on webhook_endpoints (project_id) where is_default;

-- Who did what. Append-only.
create table audit (
    id               text collate "C" primary key,
    organization_id  text collate "C" not null,
    project_id       text collate "C",
    actor            text not null,                         -- key_…, or cli:<user>
    action           text not null,                         -- api_key.created
    target           text not null,
    detail           json not null,                         -- no secrets
    created_at       timestamptz not null
);
create index audit_by_project on audit (project_id, id);

-- Each process writes a row now and then, to notice when the database takes no writes.
create table readiness (
    slot        bigint primary key,
    checked_at  timestamptz not null
);

-- Hot tables --------------------------------------------------------------------------------------------------------

-- last_used, written lazily.
create table api_key_uses (
    project_id    text collate "C" not null,
    api_key_id    text collate "C" not null,
    last_used_at  timestamptz not null,
    primary key (project_id, api_key_id)
);

create table registration_intents (
    project_id          text collate "C" not null,
    id                  text collate "C" not null,
    status              text not null check (status in ('PENDING', 'JOINED', 'REJECTED', 'EXPIRED')),
    customer_reference  text collate "C" not null,
    metadata            json not null,
    reference_trust     text not null check (reference_trust in ('server', 'signed', 'unverified')),
    channel_id          text collate "C" not null,
    api_key_id          text collate "C" not null,
    locale              text,
    token_hash          bytea not null,                     -- SHA-256; the token itself is derived from id and secret
    token_prefix        text collate "C" not null,          -- first 6 characters, to tell a typo from an unknown token
    secret_version      integer not null,
    created_at          timestamptz not null,
    expires_at          timestamptz not null,
    ended_at            timestamptz,
    rejection_reason    text,
    contact_id          text collate "C",
    message_id          text collate "C",                   -- the message that ended it
    joined_at           timestamptz,
    already_linked      boolean not null default false,
    opened_at           timestamptz,                        -- when the person first went on from the page
    opened_via          text,
    client_hash         bytea not null default '',          -- keyed hash of an anonymous minter's address while pending
    reuse_count         integer not null default 0,         -- messages with its token from other people
    reuse_told_at       timestamptz,                        -- the last security.token_reuse
    primary key (project_id, id),
    unique (project_id, token_hash),
    check ((status = 'PENDING') = (ended_at is null)),
    check ((status = 'REJECTED') = (rejection_reason is not null)),
    check ((status = 'JOINED') = (joined_at is not null)),
    check (status <> 'JOINED' or (contact_id is not null and message_id is not null)),
    constraint registration_intents_in_order check (ended_at >= created_at and joined_at >= created_at)
);
create index registration_intents_by_reference on registration_intents (project_id, customer_reference, id);
create index registration_intents_by_contact on registration_intents (project_id, contact_id, id)
    where contact_id is not null;
create index registration_intents_by_channel on registration_intents (project_id, channel_id, status, id)
    where channel_id is not null;                           -- always so: a look-up by id alone must not think of this index
create index registration_intents_pending on registration_intents (project_id, expires_at) where status = 'PENDING';
create index registration_intents_caps on registration_intents (project_id, customer_reference, client_hash, expires_at)
    where ended_at is null;

-- A WhatsApp identity inside a project.
create table contacts (
    project_id    text collate "C" not null,
    id            text collate "C" not null,
    username      text,                                     -- display only: it can be given away
    profile_name  text,
    country       text,                                     -- two letters
    created_at    timestamptz not null,
    merged_into   text collate "C",
    latest_at     timestamptz,                              -- latest participant.* event that no active link tells
    duplicate_of  text collate "C",                         -- the same person, but both are linked
    primary key (project_id, id)
);
create index contacts_duplicates on contacts (project_id, id) where duplicate_of is not null;

create table identifiers (
    project_id     text collate "C" not null,
    contact_id     text collate "C" not null,
    kind           text not null check (kind in ('bsuid', 'parent_bsuid', 'phone')),
    scope          text collate "C" not null,               -- portfolio or WABA of a BSUID; '' for a phone
    value          text collate "C" not null,
    created_at     timestamptz not null,
    superseded_at  timestamptz,
    primary key (project_id, contact_id, kind, scope, value)
);
create unique index identifiers_current on identifiers (project_id, kind, scope, value) where superseded_at is null;

create table conversations (
    project_id  text collate "C" not null,
    id          text collate "C" not null,
    channel_id  text collate "C" not null,
    contact_id  text collate "C" not null,
    created_at  timestamptz not null,
    primary key (project_id, contact_id, channel_id)
);

-- contact <-> customer_reference. One active link per reference.
create table links (
    project_id              text collate "C" not null,
    id                      text collate "C" not null,
    contact_id              text collate "C" not null,
    customer_reference      text collate "C" not null,
    registration_intent_id  text collate "C" not null,
    reference_trust         text not null check (reference_trust in ('server', 'signed', 'unverified')),
    metadata                json not null,
    created_at              timestamptz not null,
    ended_at                timestamptz,
    end_reason              text check (end_reason in
                                ('unlinked_by_app', 'unlinked_by_customer', 'disowned', 'replaced', 'erased')),
    primary key (project_id, id),
    check ((ended_at is null) = (end_reason is null)),
    constraint links_in_order check (ended_at >= created_at)
);
create unique index links_by_reference on links (project_id, customer_reference) where ended_at is null;
create index links_ended on links (project_id, customer_reference, ended_at) where ended_at is not null;
create index links_by_contact on links (project_id, contact_id) where ended_at is null;

-- Every inbound message, once. With a token it is an attempt, and `attempt` says what became of it.
create table messages (
    project_id              text collate "C" not null,
    id                      text collate "C" not null,
    channel_id              text collate "C" not null,
    provider_message_id     text collate "C" not null,
    kind                    text not null check (kind in ('message', 'system', 'unreadable')),
    type                    text not null,
    contact_id              text collate "C",
    conversation_id         text collate "C",
    text                    text,                           -- token-shaped runs are redacted
    forwarded               boolean not null,
    sent_at                 timestamptz not null,
    received_at             timestamptz not null,
    attempt                 text,
    registration_intent_id  text collate "C",
    error                   text,
    raw                     json,
    handled_by              text not null default 'app',    -- app, or agent: Meta's Business Agent held the conversation
    content                 json,                           -- the provider's object for the type; tokens redacted
    context                 json,
    referral                json,
    content_truncated       boolean not null default false,
    placeholder             boolean not null default false, -- content may still replace it; erasing clears this
    event_id                text collate "C",               -- of a placeholder: the event that announced it
    primary key (project_id, id),
    unique (project_id, channel_id, provider_message_id),
    check (attempt is not null or registration_intent_id is null)
);

-- What happened, with the exact bytes that every delivery sends.
create table events (
    project_id              text collate "C" not null,
    id                      text collate "C" not null,
    type                    text not null,
    contact_id              text collate "C",
    registration_intent_id  text collate "C",
    body                    bytea not null,
    created_at              timestamptz not null,
    primary key (project_id, id)
);
create index events_by_contact on events (project_id, contact_id, id) where contact_id is not null;
create index events_by_intent on events (project_id, registration_intent_id, id) where registration_intent_id is not null;

-- One event to one endpoint: the queue item. due_at is set while it has to be sent, and moved forward by a lease.
create table deliveries (
    project_id   text collate "C" not null,
    id           text collate "C" not null,
    event_id     text collate "C" not null,
    endpoint_id  text collate "C" not null,
    state        text not null check (state in ('pending', 'delivered', 'failed', 'held')),
    attempts     integer not null default 0,
    due_at       timestamptz,
    created_at   timestamptz not null,
    ended_at     timestamptz,
    primary key (project_id, id),
    check ((state = 'pending') = (due_at is not null)),
    check ((state in ('delivered', 'failed')) = (ended_at is not null))
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_analyze_scale_factor = 0.01);
create index deliveries_due on deliveries (project_id, endpoint_id, due_at) where due_at is not null;
create index deliveries_due_anywhere on deliveries (due_at) where due_at is not null;
create index deliveries_held on deliveries (project_id, endpoint_id, id) where state = 'held';

create table delivery_attempts (
    project_id     text collate "C" not null,
    delivery_id    text collate "C" not null,
    number         integer not null,
    outcome        text not null,
    status         integer,
    error          text,
    response_body  bytea,                                   -- first 16 KiB
    address        text,
    elapsed_ms     real not null,
    attempted_at   timestamptz not null,
    primary key (project_id, delivery_id, number)
);

-- What a write answered, so that the same Idempotency-Key answers it again.
create table idempotency_keys (
    project_id      text collate "C" not null,
    api_key_id      text collate "C" not null,
    call            text collate "C" not null,              -- method and path
    key             text collate "C" not null,
    request_hash    bytea not null,
    status          integer not null,
    answer          bytea not null,                         -- sealed
    secret_version  integer not null,
    object_ids      text[] not null,                        -- so that erasure finds it
    created_at      timestamptz not null,
    expires_at      timestamptz not null,
    primary key (project_id, api_key_id, call, key)
);
create index idempotency_keys_expired on idempotency_keys (project_id, expires_at);

-- Plans are kept, and every index begins with project_id. To the planner all projects are therefore one: where each has
-- only a row or two, it would otherwise see no difference between an index that names the row and one that reads the
-- whole project, and go on with the worse while the project grows.
alter table api_key_uses alter column project_id set (n_distinct = 1);
alter table registration_intents alter column project_id set (n_distinct = 1);
alter table contacts alter column project_id set (n_distinct = 1);
alter table identifiers alter column project_id set (n_distinct = 1);
alter table conversations alter column project_id set (n_distinct = 1);
alter table links alter column project_id set (n_distinct = 1);
alter table messages alter column project_id set (n_distinct = 1);
alter table events alter column project_id set (n_distinct = 1);
alter table deliveries alter column project_id set (n_distinct = 1);
alter table delivery_attempts alter column project_id set (n_distinct = 1);
alter table idempotency_keys alter column project_id set (n_distinct = 1);
