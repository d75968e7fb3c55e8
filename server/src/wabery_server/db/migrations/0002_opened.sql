-- How the person went on from the page, as the page tells it.
alter table registration_intents add column opened_at timestamptz;
alter table registration_intents add column opened_via text;
