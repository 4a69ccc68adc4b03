-- Ids of runs are ordered by their characters, whatever the order of words in this database, so that the index
-- which keeps them apart also finds those that begin in one way, and the ids next to one.

DROP TRIGGER run_is_born_with_it ON agentguard.run;

ALTER TABLE agentguard.run ALTER run_id TYPE text COLLATE "C";

CREATE TRIGGER run_is_born_with_it BEFORE UPDATE ON agentguard.run FOR EACH ROW
WHEN ((new.number, new.run_id, new.born, new.tenant, new.name, new.created_ns, new.parent_id)
        IS DISTINCT FROM (old.number, old.run_id, old.born, old.tenant, old.name, old.created_ns, old.parent_id)
    OR new.salt IS NOT NULL AND new.salt IS DISTINCT FROM old.salt)
EXECUTE FUNCTION agentguard.refuse('what a run is born with never changes, but its salt may be erased');

-- What a tenant's own login asks.
CREATE FUNCTION agentguard.tenant_neighbours(of_run text) RETURNS TABLE (before text, after text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT
        (SELECT run_id FROM agentguard.run
            WHERE run_id < of_run AND tenant = agentguard.my_tenant() ORDER BY run_id DESC LIMIT 1),
        (SELECT run_id FROM agentguard.run
            WHERE run_id > of_run AND tenant = agentguard.my_tenant() ORDER BY run_id LIMIT 1);
$$;
REVOKE ALL ON FUNCTION agentguard.tenant_neighbours(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION agentguard.tenant_neighbours(text)
    TO agentguard_tenant, agentguard_agent, agentguard_operator;
