-- Which project's keys created a project, directly or not: such projects share room for deliveries and a limit.
alter table projects add column root_project_id text collate "C";
with recursive tree (id, root) as (
    select p.id, p.id
    from projects p
    where not exists (
        select from audit a
        where a.project_id = p.id and a.action = 'project.created' and a.actor like 'key\_%')
    union all
    select a.project_id, t.root
    from tree t
    join api_keys k on k.project_id = t.id
    join audit a on a.actor = k.id and a.action = 'project.created')
update projects p set root_project_id = t.root
from tree t
where t.id = p.id and t.root <> p.id;
-- squawk-ignore require-concurrent-index-creation
create index projects_by_root on projects (root_project_id, livemode) where root_project_id is not null;
