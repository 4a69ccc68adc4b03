-- Events are reached by the functions of their owner alone, each by a run that its caller may see; so their policy,
-- which took a third of what an append costs the server, is for whoever asks the table itself.
ALTER TABLE agentguard.event NO FORCE ROW LEVEL SECURITY;

-- The events of all runs, or of one tenant's, after a position and below `settled`.
CREATE OR REPLACE FUNCTION agentguard.tail(after bigint, of_tenant text, most integer) RETURNS SETOF agentguard.event
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    below bigint := agentguard.settled();
    mine text := agentguard.my_tenant();
BEGIN
    IF of_tenant <> mine THEN
        RETURN;
    END IF;
    of_tenant := coalesce(of_tenant, mine);
    IF of_tenant IS NULL THEN
        RETURN QUERY SELECT e.* FROM agentguard.event e
            WHERE e.position > after AND e.position < below ORDER BY e.position LIMIT most;
    ELSE
        RETURN QUERY SELECT e.* FROM agentguard.event e
            WHERE e.tenant = of_tenant AND e.position > after AND e.position < below
            ORDER BY e.position LIMIT most;
    END IF;
END;
$$;
