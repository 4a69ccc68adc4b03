-- Shared accounts are charged by the append itself where there is room to spare, so that nobody holds a tenant's account
-- while a client decides.  What there is room for is decided in `agentguard.budget`: here sums are compared and added.

-- Charge accounts, all or none; gives what they hold then, as a JSON array, or NULL where the client has to decide
-- on what they hold now.  `charges` is an array of `[id, rest, from, until, amounts]`: `rest`
-- is the account without its amounts, `from` and `until` are the seconds between which it may be charged, or null; and
-- of each resource `amounts` has `[resource, spent, reserved, excess, held, most]`: what is added to the three, how
-- much must be reserved there, and how much may be spent and reserved, or null.
CREATE FUNCTION agentguard.charge(charges jsonb) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    charge jsonb;
    amounts jsonb;
    amount jsonb;
    resource text;
    data jsonb;
    spent jsonb;
    reserved jsonb;
    excess jsonb;
    used numeric;
    held numeric;
    datas jsonb := '[]';
BEGIN
    IF jsonb_array_length(charges) > 1 THEN
        PERFORM 1 FROM agentguard.account a -- in the same order as everybody
        WHERE a.id IN (SELECT c ->> 0 FROM jsonb_array_elements(charges) AS c) ORDER BY a.id FOR NO KEY UPDATE;
    END IF;
    FOR nth IN 0..jsonb_array_length(charges) - 1 LOOP
        charge := charges -> nth;
        SELECT a.data::jsonb INTO data FROM agentguard.account a WHERE a.id = charge ->> 0 FOR NO KEY UPDATE;
        IF data IS NULL OR data - '{spent,reserved,excess}'::text[] <> charge -> 1 OR NOT (
            floor(extract(epoch FROM now())) BETWEEN (charge ->> 2)::bigint AND (charge ->> 3)::bigint - 1
            OR floor(extract(epoch FROM clock_timestamp()))
                BETWEEN (charge ->> 2)::bigint AND (charge ->> 3)::bigint - 1
        ) THEN
            RETURN NULL;
        END IF;
        spent := data -> 'spent';
        reserved := data -> 'reserved';
        excess := data -> 'excess';
        IF jsonb_typeof(spent) IS DISTINCT FROM 'object' OR jsonb_typeof(reserved) IS DISTINCT FROM 'object'
            OR jsonb_typeof(excess) IS DISTINCT FROM 'object'
            OR jsonb_build_array(spent, reserved, excess)
                @? 'strict $[*].* ? (@.type() != "number" || @ < 0 || @ != @.floor())'
        THEN
            RETURN NULL; -- somebody edited it
        END IF;
        amounts := charge -> 4;
        FOR place IN 0..jsonb_array_length(amounts) - 1 LOOP
            amount := amounts -> place;
            resource := amount ->> 0;
            used := coalesce((spent -> resource)::numeric, 0);
            held := coalesce((reserved -> resource)::numeric, 0);
            IF held < (amount -> 4)::numeric OR used + held > (amount ->> 5)::numeric THEN
                RETURN NULL;
            END IF;
            IF amount -> 1 <> 'null' THEN
                spent := spent || jsonb_build_object(resource, used + (amount -> 1)::numeric);
            END IF;
            IF amount -> 2 <> 'null' THEN
                reserved := reserved || jsonb_build_object(resource, held + (amount -> 2)::numeric);
            END IF;
            IF amount -> 3 <> 'null' THEN
                excess := excess || jsonb_build_object(
                    resource, coalesce((excess -> resource)::numeric, 0) + (amount -> 3)::numeric
                );
            END IF;
        END LOOP;
        datas := datas || jsonb_build_array(
            data || jsonb_build_object('spent', spent, 'reserved', reserved, 'excess', excess)
        );
    END LOOP;
    FOR nth IN 0..jsonb_array_length(charges) - 1 LOOP
        UPDATE agentguard.account a SET data = datas ->> nth WHERE a.id = charges -> nth ->> 0;
    END LOOP;
    RETURN datas;
END;
$$;

DROP FUNCTION agentguard.append(bigint, integer, bytea, integer, integer, text, bytea[], bytea[], bytea[]);

-- Append to a run: what `hold` and `put` do where no account is moved.  The events are numbered from `first`; they
-- follow the event whose hash is `previous`, where that is not NULL; the transaction has given `placed` positions.
-- Callers that append to several runs in one transaction take them in rising order, so that two that wait do not
-- wait for each other.  Returns `a`: appended; `b`: busy, since another writer holds the run, and nothing was
-- written; `m`: moved, likewise: its head is another one, or it is not there; `c`: likewise, since the client has to
-- decide on what its accounts hold now.  `charges` is as in `charge`, or NULL: then what they hold follows the `a`.
CREATE FUNCTION agentguard.append(
    run bigint, first integer, previous bytea, placed integer, patience integer, narrow text,
    bodies bytea[], hashes bytea[], payloads bytea[], charges text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    owner text;
    head integer;
    digest bytea;
    start bigint;
    datas text := '';
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
    IF charges IS NOT NULL THEN
        datas := agentguard.charge(charges::jsonb);
        IF datas IS NULL THEN
            RETURN 'c';
        END IF;
    END IF;
    start := agentguard.now_at(pg_current_xact_id()) + placed;
    INSERT INTO agentguard.event (number, seq, position, body, hash, payload, tenant)
    SELECT run, first + e.nth - 1, start + e.nth, e.body, e.hash, e.payload, owner
    FROM unnest(bodies, hashes, payloads) WITH ORDINALITY AS e (body, hash, payload, nth);
    RETURN 'a' || datas;
END;
$$;

REVOKE ALL ON FUNCTION
    agentguard.charge(jsonb),
    agentguard.append(bigint, integer, bytea, integer, integer, text, bytea[], bytea[], bytea[], text)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    agentguard.append(bigint, integer, bytea, integer, integer, text, bytea[], bytea[], bytea[], text)
    TO agentguard_agent, agentguard_operator;
