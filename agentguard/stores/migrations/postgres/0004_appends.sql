-- Appending run by run.  One statement for a whole batch looked for the heads in every partition and read the
-- runs twice; a statement for one run knows its partition.

DROP FUNCTION agentguard.append(
    bigint[], integer[], integer, text, bigint[], integer[], bytea[], bytea[], bytea[]
);

-- Append to many runs in one go: what `hold` and `put` do where no account is moved.  The events of a run lie
-- together, as many as `counts` says, and are numbered from `firsts`; callers name runs in rising order, so
-- that two that wait do not wait for each other.  Returns the runs whose head is another one (`head` tells),
-- or that another writer holds (`head` is NULL); nothing of those was written.
CREATE FUNCTION agentguard.append(
    runs bigint[], firsts integer[], counts integer[], patience integer, narrow text,
    bodies bytea[], hashes bytea[], payloads bytea[]
) RETURNS TABLE (number bigint, head integer)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    mine bigint;
    owner text;
    newest integer;
    first bigint;
    past integer := 0;
BEGIN
    LOCK TABLE ONLY agentguard.event IN ROW EXCLUSIVE MODE; -- as in `enter`
    IF narrow IS NOT NULL THEN
        PERFORM set_config('agentguard.tenant', narrow, true);
    END IF;
    PERFORM set_config('lock_timeout', CASE patience WHEN 0 THEN '1000' ELSE patience::text END, true);
    FOR place IN 1..cardinality(runs) LOOP
        mine := runs[place];
        IF patience = 0 THEN
            SELECT r.tenant INTO owner FROM agentguard.run r WHERE r.number = mine FOR NO KEY UPDATE SKIP LOCKED;
        ELSE
            SELECT r.tenant INTO owner FROM agentguard.run r WHERE r.number = mine FOR NO KEY UPDATE;
        END IF;
        IF FOUND THEN
            SELECT e.seq INTO newest FROM agentguard.event e
            WHERE e.number = mine ORDER BY e.seq DESC LIMIT 1;
            IF coalesce(newest, 0) = firsts[place] - 1 THEN
                first := coalesce(first, agentguard.now_at(pg_current_xact_id()));
                INSERT INTO agentguard.event (number, seq, position, body, hash, payload, tenant)
                SELECT mine, firsts[place] + e.nth - 1, first + past + e.nth, e.body, e.hash, e.payload, owner
                FROM unnest(bodies[past + 1:past + counts[place]], hashes[past + 1:past + counts[place]],
                    payloads[past + 1:past + counts[place]]) WITH ORDINALITY
                    AS e (body, hash, payload, nth);
            ELSE
                number := mine;
                head := coalesce(newest, 0);
                RETURN NEXT;
            END IF;
        ELSE
            number := mine;
            head := (SELECT -1 WHERE NOT EXISTS (SELECT 1 FROM agentguard.run r WHERE r.number = mine));
            RETURN NEXT;
        END IF;
        past := past + counts[place];
    END LOOP;
END;
$$;

REVOKE ALL ON FUNCTION
    agentguard.append(bigint[], integer[], integer[], integer, text, bytea[], bytea[], bytea[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    agentguard.append(bigint[], integer[], integer[], integer, text, bytea[], bytea[], bytea[])
    TO agentguard_agent, agentguard_operator;
