-- Reads the tables once and stops no one meanwhile: a lock that 0006 needed is gone by now.
alter table links validate constraint links_in_order;
alter table registration_intents validate constraint registration_intents_in_order;
