-- What is held is looked for when its endpoint is back. The table is read once for it, and takes no events meanwhile.
-- squawk-ignore require-concurrent-index-creation
create index deliveries_held on deliveries (project_id, endpoint_id, id) where state = 'held';
