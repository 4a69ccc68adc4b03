-- Ids of runs are ordered by their characters, whatever the order of words in this database, so that the index
-- which keeps them apart also finds those that begin in one way, and the ids next to one.

DROP TRIGGER run_is_born_with_it ON agentguard.run;

ALTER TABLE agentguard.run ALTER run_id TYPE text COLLATE "C";

CREATE TRIGGER run_is_born_with_it BEFORE UPDATE ON agentguard.run FOR EACH ROW
WHEN ((new.number, new.run_id, new.born, new.tenant, new.name, new.created_ns, new.parent_id)
        IS DISTINCT FROM (old.number, old.run_id, old.born, old.tenant, old.name, old.created_ns, old.parent_id)
    OR new.salt IS NOT NULL AND new.salt IS DISTINCT FROM old.salt)
EXECUTE FUNCTION agentguard.refuse('what a run is born with never changes, but its salt may be erased');
