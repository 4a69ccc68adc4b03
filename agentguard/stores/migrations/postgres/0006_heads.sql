-- A head is a sequence and a hash.  After events were lost, as on a replica that was promoted too early, another
-- process may append up to the very sequence that one knows; then what that one appends next does not follow.

DROP FUNCTION agentguard.hold(bigint[], text[], text[], bigint[], integer, text);
DROP FUNCTION agentguard.append(bigint[], integer[], integer[], integer, text, bytea[], bytea[], bytea[]);

-- Lock runs, and then accounts, each in one order for everybody, and tell what they are.  With `patience` 0
-- a run that another writer holds is left out, else it is waited for, so many milliseconds.
CREATE FUNCTION agentguard.hold(
    runs bigint[], accounts text[], tenants text[], owners bigint[], patience integer, narrow text
) RETURNS TABLE (number bigint, head integer, hash bytea, epoch integer, id text, data text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    mine bigint;
    found integer;
    was text;
BEGIN
    LOCK TABLE ONLY agentguard.event IN ROW EXCLUSIVE MODE; -- as in `enter`
    was := set_config('idle_in_transaction_session_timeout', '10000', true); -- of a client that was paused
    IF narrow IS NOT NULL THEN
        was := set_config('agentguard.tenant', narrow, true);
    END IF;
    was := set_config('lock_timeout', CASE patience WHEN 0 THEN '1000' ELSE patience::text END, true);
    FOREACH mine IN ARRAY runs LOOP
        IF patience = 0 THEN
            SELECT r.epoch INTO epoch FROM agentguard.run r WHERE r.number = mine FOR NO KEY UPDATE SKIP LOCKED;
        ELSE
            SELECT r.epoch INTO epoch FROM agentguard.run r WHERE r.number = mine FOR NO KEY UPDATE;
        END IF;
        IF epoch IS NOT NULL THEN
            SELECT e.seq, e.hash INTO head, hash FROM agentguard.event e
            WHERE e.number = mine ORDER BY e.seq DESC LIMIT 1;
            number := mine;
            head := coalesce(head, 0);
            RETURN NEXT;
        ELSIF EXISTS (SELECT 1 FROM agentguard.run r WHERE r.number = mine) THEN
            number := mine;
            head := NULL;
            RETURN NEXT;
        END IF;
    END LOOP;
    IF cardinality(accounts) > 0 THEN
        SELECT count(*) INTO found FROM agentguard.account a WHERE a.id = ANY (accounts);
        IF found < cardinality(accounts) THEN
            INSERT INTO agentguard.account (id, tenant)
            SELECT new.id, coalesce(new.tenant, r.tenant, '')
            FROM unnest(accounts, tenants, owners) AS new (id, tenant, owner)
            LEFT JOIN agentguard.run r ON r.number = new.owner
            ORDER BY 1 ON CONFLICT DO NOTHING;
        END IF;
        RETURN QUERY
            SELECT NULL::bigint, NULL::integer, NULL::bytea, NULL::integer, a.id, a.data
            FROM agentguard.account a WHERE a.id = ANY (accounts) ORDER BY a.id FOR NO KEY UPDATE;
    END IF;
END;
$$;

-- Append to a run: what `hold` and `put` do where no account is moved.  The events are numbered from `first`; they
-- follow the event whose hash is `previous`, where that is not NULL; the transaction has given `placed` positions.
-- Callers that append to several runs in one transaction take them in rising order, so that two that wait do not
-- wait for each other.  Returns `a`: appended; `b`: busy, since another writer holds the run, and nothing was
-- written; `m`: moved, likewise: its head is another one, or it is not there.
CREATE FUNCTION agentguard.append(
    run bigint, first integer, previous bytea, placed integer, patience integer, narrow text,
    bodies bytea[], hashes bytea[], payloads bytea[]
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    owner text;
    head integer;
    digest bytea;
    start bigint;
    was text;
BEGIN
    LOCK TABLE ONLY agentguard.event IN ROW EXCLUSIVE MODE; -- as in `enter`
    IF narrow IS NOT NULL THEN
        was := set_config('agentguard.tenant', narrow, true);
    END IF;
    was := set_config('lock_timeout', CASE patience WHEN 0 THEN '1000' ELSE patience::text END, true);
    IF patience = 0 THEN
        SELECT r.tenant INTO owner FROM agentguard.run r WHERE r.number = run FOR NO KEY UPDATE SKIP LOCKED;
    ELSE
        SELECT r.tenant INTO owner FROM agentguard.run r WHERE r.number = run FOR NO KEY UPDATE;
    END IF;
    IF NOT FOUND THEN
        RETURN CASE WHEN EXISTS (SELECT 1 FROM agentguard.run r WHERE r.number = run) THEN 'b' ELSE 'm' END;
    END IF;
    SELECT e.seq, e.hash INTO head, digest FROM agentguard.event e WHERE e.number = run ORDER BY e.seq DESC LIMIT 1;
    IF coalesce(head, 0) <> first - 1 OR digest <> previous THEN
        RETURN 'm';
    END IF;
    start := agentguard.now_at(pg_current_xact_id()) + placed;
    INSERT INTO agentguard.event (number, seq, position, body, hash, payload, tenant)
    SELECT run, first + e.nth - 1, start + e.nth, e.body, e.hash, e.payload, owner
    FROM unnest(bodies, hashes, payloads) WITH ORDINALITY AS e (body, hash, payload, nth);
    RETURN 'a';
END;
$$;

REVOKE ALL ON FUNCTION
    agentguard.hold(bigint[], text[], text[], bigint[], integer, text),
    agentguard.append(bigint, integer, bytea, integer, integer, text, bytea[], bytea[], bytea[])
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    agentguard.hold(bigint[], text[], text[], bigint[], integer, text),
    agentguard.append(bigint, integer, bytea, integer, integer, text, bytea[], bytea[], bytea[])
    TO agentguard_agent, agentguard_operator;
