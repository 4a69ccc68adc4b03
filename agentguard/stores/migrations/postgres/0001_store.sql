-- The logs, one row for each run, and the shared accounts.  Released migrations are never edited.
--
-- The schema belongs to agentguard_owner, which nobody logs in as and which row-level security binds, so that
-- it binds the functions below too, whoever has migrated.  Who may do what: members of agentguard_agent append and read, members of agentguard_operator erase and
-- prune besides, members of agentguard_tenant call the functions at the end and see no table.  A login that
-- is bound to a tenant (table tenant_login) sees and writes that tenant's rows alone, whatever it says.

REVOKE ALL ON SCHEMA agentguard FROM PUBLIC;
GRANT USAGE ON SCHEMA agentguard TO agentguard_tenant, agentguard_agent, agentguard_operator;

-- --- tables --------------------------------------------------------------------------------------

CREATE TABLE agentguard.run (
    number bigint PRIMARY KEY,     -- day of creation * 2^47 + a random number: it counts nothing
    run_id text NOT NULL UNIQUE,
    born bigint NOT NULL,          -- position of its creation: newer runs have a greater one
    tenant text NOT NULL,
    name text NOT NULL,
    state text NOT NULL,
    created_ns bigint NOT NULL,
    parent_id text,
    ended_ns bigint,
    epoch integer NOT NULL,
    owner text NOT NULL,
    heartbeat_ns bigint NOT NULL,
    salt bytea,
    summary text NOT NULL,
    pruning boolean NOT NULL DEFAULT false
) WITH (fillfactor = 70);          -- room for the next version of a row beside it

CREATE INDEX run_by_birth ON agentguard.run (born);
CREATE INDEX run_by_tenant ON agentguard.run (tenant, born);
CREATE INDEX run_by_state ON agentguard.run (state, born);
CREATE INDEX run_by_parent ON agentguard.run (parent_id, born) WHERE parent_id IS NOT NULL;
CREATE INDEX run_by_end ON agentguard.run (ended_ns) WHERE ended_ns IS NOT NULL;

-- Partitioned by the month in which the run was created, which its number tells, so that the key of the
-- compare-and-swap holds over all partitions.
CREATE TABLE agentguard.event (
    number bigint NOT NULL,
    seq integer NOT NULL,
    position bigint NOT NULL,      -- transaction * 2^20 + place in it, see `agentguard.now_at`
    body bytea NOT NULL,
    hash bytea NOT NULL,
    payload bytea,
    tenant text NOT NULL,
    PRIMARY KEY (number, seq)
) PARTITION BY RANGE (number);

CREATE INDEX event_by_position ON agentguard.event (position);

CREATE TABLE agentguard.event_of_other_months PARTITION OF agentguard.event DEFAULT;

CREATE TABLE agentguard.account (
    id text PRIMARY KEY,
    tenant text NOT NULL,
    data text                      -- NULL until it is opened: the row is there to be locked
) WITH (fillfactor = 50);

GRANT SELECT ON agentguard.migration TO agentguard_tenant, agentguard_agent, agentguard_operator;

CREATE TABLE agentguard.tenant_login (
    login text PRIMARY KEY,
    tenant text NOT NULL
);

-- One row: what is added to the number of a transaction, so that positions go on rising in a database that
-- was restored into another server.
CREATE TABLE agentguard.timeline (
    base bigint NOT NULL
);
INSERT INTO agentguard.timeline VALUES (0);

-- What the planner says of a query must not tell of other tenants.
ALTER TABLE agentguard.run ALTER tenant SET STATISTICS 0;
ALTER TABLE agentguard.run ALTER run_id SET STATISTICS 0;
ALTER TABLE agentguard.run ALTER parent_id SET STATISTICS 0;
ALTER TABLE agentguard.event ALTER tenant SET STATISTICS 0;
ALTER TABLE agentguard.account ALTER tenant SET STATISTICS 0;
ALTER TABLE agentguard.account ALTER id SET STATISTICS 0;

-- --- positions and partitions --------------------------------------------------------------------

-- The first position of a transaction.  Whatever commits later than a moment has a position of at least
-- that of the oldest transaction in flight at that moment.
CREATE FUNCTION agentguard.now_at(xid xid8) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT (xid::text::bigint + base) << 20 FROM agentguard.timeline;
$$;

-- Say that this transaction writes events, before it has a number that positions could be made of.
CREATE FUNCTION agentguard.enter() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    LOCK TABLE ONLY agentguard.event IN ROW EXCLUSIVE MODE;
END;
$$;

-- The position below which nothing is committed any more: that of the oldest writer in flight.
--
-- Writers lock `event` before they get the number of their transaction (`enter`), and let go after their
-- commit can be seen.  So whatever has a lower number than the next one, as of the snapshot that this
-- begins with, is either among the locks that are read after it, or is seen by the next statement; the
-- caller reads in a statement of its own.  Of a writer that has no number yet, or one that is just being
-- noted, nothing is known: then, and in a transaction with one snapshot for all its statements, the oldest
-- transaction of the whole server counts.
CREATE FUNCTION agentguard.settled() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    snapshot pg_snapshot := pg_current_snapshot();
    oldest bigint := pg_snapshot_xmin(snapshot)::text::bigint;
    following bigint := pg_snapshot_xmax(snapshot)::text::bigint;
    writers bigint;
    noted bigint;
    lowest bigint;
BEGIN
    IF oldest < following AND current_setting('transaction_isolation') = 'read committed' THEN
        SELECT count(*), count(x.transactionid), min(following - ((following - x.transactionid::text::bigint)
            % 4294967296 + 4294967296) % 4294967296)
        INTO writers, noted, lowest
        FROM (
            SELECT DISTINCT virtualtransaction FROM pg_locks
            WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted
                AND relation = 'agentguard.event'::regclass
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        ) AS w
        LEFT JOIN (
            SELECT virtualtransaction, transactionid FROM pg_locks
            WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND granted
        ) AS x USING (virtualtransaction);
        IF writers = noted THEN
            oldest := least(coalesce(lowest, following), following);
        END IF;
    END IF;
    RETURN (oldest + base) << 20 FROM agentguard.timeline;
END;
$$;

-- The events of all runs, or of one tenant's, after a position and below `settled`.
CREATE FUNCTION agentguard.tail(after bigint, of_tenant text, most integer) RETURNS SETOF agentguard.event
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    below bigint := agentguard.settled();
BEGIN
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

CREATE FUNCTION agentguard.first_number(day date) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$ SELECT (day - date '1970-01-01')::bigint << 47 $$;

-- Make the partitions of this month and of the months after it, as far as they are missing.
CREATE FUNCTION agentguard.make_partitions(months integer DEFAULT 12) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    begins date;
    name text;
    made integer := 0;
BEGIN
    FOR step IN 0..months LOOP
        begins := (date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => step))::date;
        name := 'event_' || to_char(begins, 'YYYY_MM');
        CONTINUE WHEN to_regclass('agentguard.' || name) IS NOT NULL;
        BEGIN
            EXECUTE format(
                'CREATE TABLE agentguard.%I PARTITION OF agentguard.event FOR VALUES FROM (%s) TO (%s)',
                name, agentguard.first_number(begins),
                agentguard.first_number((begins + interval '1 month')::date)
            );
            EXECUTE format('ALTER TABLE agentguard.%I ALTER tenant SET STATISTICS 0', name);
            made := made + 1;
        EXCEPTION WHEN check_violation THEN
            NULL; -- events of that month lie in the default partition, and stay there
        END;
    END LOOP;
    RETURN made;
END;
$$;

-- --- who sees what -------------------------------------------------------------------------------

-- The one tenant whose rows this session may see and write; NULL for all.  A login that is bound to a tenant
-- cannot change it; for another one the setting `agentguard.tenant` narrows a transaction to a tenant.
CREATE FUNCTION agentguard.my_tenant() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(
        (SELECT tenant FROM agentguard.tenant_login WHERE login = session_user),
        nullif(current_setting('agentguard.tenant', true), '')
    );
$$;

ALTER TABLE agentguard.run ENABLE ROW LEVEL SECURITY;
ALTER TABLE agentguard.run FORCE ROW LEVEL SECURITY;
ALTER TABLE agentguard.event ENABLE ROW LEVEL SECURITY;
ALTER TABLE agentguard.event FORCE ROW LEVEL SECURITY;
ALTER TABLE agentguard.account ENABLE ROW LEVEL SECURITY;
ALTER TABLE agentguard.account FORCE ROW LEVEL SECURITY;

CREATE POLICY of_my_tenant ON agentguard.run
    USING ((SELECT agentguard.my_tenant()) IS NULL OR tenant = (SELECT agentguard.my_tenant()));
CREATE POLICY of_my_tenant ON agentguard.event
    USING ((SELECT agentguard.my_tenant()) IS NULL OR tenant = (SELECT agentguard.my_tenant()));
CREATE POLICY of_my_tenant ON agentguard.account
    USING ((SELECT agentguard.my_tenant()) IS NULL OR tenant = (SELECT agentguard.my_tenant()));

-- --- appending -----------------------------------------------------------------------------------

-- Lock runs, and then accounts, each in one order for everybody, and tell what they are.  With `patience` 0
-- a run that another writer holds is left out, else it is waited for, so many milliseconds.
CREATE FUNCTION agentguard.hold(
    runs bigint[], accounts text[], tenants text[], owners bigint[], patience integer, narrow text
) RETURNS TABLE (number bigint, head integer, epoch integer, id text, data text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    held bigint[];
    found integer;
BEGIN
    LOCK TABLE ONLY agentguard.event IN ROW EXCLUSIVE MODE; -- as in `enter`
    PERFORM set_config('idle_in_transaction_session_timeout', '10000', true); -- of a client that was paused
    IF narrow IS NOT NULL THEN
        PERFORM set_config('agentguard.tenant', narrow, true);
    END IF;
    PERFORM set_config('lock_timeout', CASE patience WHEN 0 THEN '1000' ELSE patience::text END, true);
    IF patience = 0 THEN
        SELECT array_agg(l.number) INTO held FROM (
            SELECT r.number FROM agentguard.run r WHERE r.number = ANY (runs)
            ORDER BY r.number FOR NO KEY UPDATE SKIP LOCKED
        ) AS l;
    ELSE
        SELECT array_agg(l.number) INTO held FROM (
            SELECT r.number FROM agentguard.run r WHERE r.number = ANY (runs)
            ORDER BY r.number FOR NO KEY UPDATE
        ) AS l;
    END IF;
    RETURN QUERY
        SELECT r.number,
            coalesce((SELECT max(e.seq) FROM agentguard.event e WHERE e.number = r.number), 0),
            r.epoch, NULL::text, NULL::text
        FROM agentguard.run r WHERE r.number = ANY (held);
    IF patience = 0 THEN
        RETURN QUERY
            SELECT r.number, NULL::integer, NULL::integer, NULL::text, NULL::text
            FROM agentguard.run r WHERE r.number = ANY (runs) AND r.number <> ALL (coalesce(held, '{}'));
    END IF;
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
            SELECT NULL::bigint, NULL::integer, NULL::integer, a.id, a.data
            FROM agentguard.account a WHERE a.id = ANY (accounts) ORDER BY a.id FOR NO KEY UPDATE;
    END IF;
END;
$$;

-- Append events of runs that are held, and write accounts that are.
CREATE FUNCTION agentguard.put(
    placed integer,
    numbers bigint[], seqs integer[], bodies bytea[], hashes bytea[], payloads bytea[],
    accounts text[], datas text[]
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    first bigint := agentguard.now_at(pg_current_xact_id()) + placed;
BEGIN
    INSERT INTO agentguard.event (number, seq, position, body, hash, payload, tenant)
    SELECT e.number, e.seq, first + e.place, e.body, e.hash, e.payload, r.tenant
    FROM unnest(numbers, seqs, bodies, hashes, payloads) WITH ORDINALITY
        AS e (number, seq, body, hash, payload, place)
    JOIN agentguard.run r ON r.number = e.number;
    IF cardinality(accounts) > 0 THEN
        UPDATE agentguard.account a SET data = new.data
        FROM unnest(accounts, datas) AS new (id, data) WHERE a.id = new.id;
    END IF;
END;
$$;

-- Append to many runs in one go: what `hold` and `put` do where no account is moved.  Returns the runs whose
-- head is another one (`head` tells), or that another writer holds (`head` is NULL); nothing of those was
-- written.
CREATE FUNCTION agentguard.append(
    runs bigint[], firsts integer[], patience integer, narrow text,
    numbers bigint[], seqs integer[], bodies bytea[], hashes bytea[], payloads bytea[]
) RETURNS TABLE (number bigint, head integer)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    held bigint[];
    heads integer[];
    good bigint[];
    first bigint;
BEGIN
    SELECT array_agg(h.number), array_agg(h.head) INTO held, heads
    FROM agentguard.hold(runs, '{}', '{}', '{}', patience, narrow) AS h WHERE h.head IS NOT NULL;
    SELECT array_agg(w.number) INTO good
    FROM unnest(runs, firsts) AS w (number, first)
    JOIN unnest(held, heads) AS h (number, head) ON h.number = w.number AND h.head = w.first - 1;
    IF good IS NOT NULL THEN
        first := agentguard.now_at(pg_current_xact_id());
        INSERT INTO agentguard.event (number, seq, position, body, hash, payload, tenant)
        SELECT e.number, e.seq, first + e.place, e.body, e.hash, e.payload, r.tenant
        FROM unnest(numbers, seqs, bodies, hashes, payloads) WITH ORDINALITY
            AS e (number, seq, body, hash, payload, place)
        JOIN agentguard.run r ON r.number = e.number
        WHERE e.number = ANY (good);
    END IF;
    IF good IS NULL OR cardinality(good) < cardinality(runs) THEN
        RETURN QUERY
            SELECT w.number, CASE WHEN h.number IS NULL THEN
                (SELECT -1 WHERE NOT EXISTS (SELECT 1 FROM agentguard.run r WHERE r.number = w.number))
                ELSE h.head END
            FROM unnest(runs, firsts) AS w (number, first)
            LEFT JOIN unnest(held, heads) AS h (number, head) ON h.number = w.number
            WHERE w.number <> ALL (coalesce(good, '{}'));
    END IF;
END;
$$;

-- --- nothing of a log changes --------------------------------------------------------------------

CREATE FUNCTION agentguard.refuse() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'agentguard: %', TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation';
END;
$$;

CREATE TRIGGER event_stays_as_it_is BEFORE UPDATE ON agentguard.event FOR EACH ROW
WHEN (new.payload IS NOT NULL OR (new.number, new.seq, new.position, new.body, new.hash, new.tenant)
    IS DISTINCT FROM (old.number, old.seq, old.position, old.body, old.hash, old.tenant))
EXECUTE FUNCTION agentguard.refuse('nothing of an event changes, but its payload may be erased');

CREATE FUNCTION agentguard.event_is_pruned() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM agentguard.run r WHERE r.number = old.number AND r.pruning) THEN
        RAISE EXCEPTION 'agentguard: events go only with their whole ended run'
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN old;
END;
$$;

CREATE TRIGGER event_stays BEFORE DELETE ON agentguard.event FOR EACH ROW
EXECUTE FUNCTION agentguard.event_is_pruned();

CREATE TRIGGER events_stay BEFORE TRUNCATE ON agentguard.event
EXECUTE FUNCTION agentguard.refuse('events go only with their whole ended run');

CREATE TRIGGER run_is_pruned_ended BEFORE UPDATE ON agentguard.run FOR EACH ROW
WHEN (new.pruning AND old.state NOT IN ('COMPLETED', 'KILLED', 'FAILED'))
EXECUTE FUNCTION agentguard.refuse('only an ended run can be pruned');

CREATE TRIGGER run_is_born_with_it BEFORE UPDATE ON agentguard.run FOR EACH ROW
WHEN ((new.number, new.run_id, new.born, new.tenant, new.name, new.created_ns, new.parent_id)
        IS DISTINCT FROM (old.number, old.run_id, old.born, old.tenant, old.name, old.created_ns, old.parent_id)
    OR new.salt IS NOT NULL AND new.salt IS DISTINCT FROM old.salt)
EXECUTE FUNCTION agentguard.refuse('what a run is born with never changes, but its salt may be erased');

CREATE FUNCTION agentguard.run_is_pruned() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT old.pruning OR EXISTS (SELECT 1 FROM agentguard.event e WHERE e.number = old.number) THEN
        RAISE EXCEPTION 'agentguard: a run goes only when it is pruned, after its events'
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN old;
END;
$$;

CREATE TRIGGER run_stays BEFORE DELETE ON agentguard.run FOR EACH ROW
EXECUTE FUNCTION agentguard.run_is_pruned();

CREATE TRIGGER runs_stay BEFORE TRUNCATE ON agentguard.run
EXECUTE FUNCTION agentguard.refuse('a run goes only when it is pruned, after its events');

-- Drop the partition of a month of which every run has ended before a time; returns the ids of its runs, or
-- NULL where one of them has not.
CREATE FUNCTION agentguard.drop_month(partition text, ended_before_ns bigint, keep text[]) RETURNS text[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    begins date;
    least bigint;
    above bigint;
    dropped text[];
BEGIN
    IF partition !~ '^event_[0-9]{4}_[0-9]{2}$' THEN
        RAISE EXCEPTION 'agentguard: % is no month', partition;
    END IF;
    begins := to_date(substr(partition, 7), 'YYYY_MM');
    IF begins + interval '1 month' > now() AT TIME ZONE 'UTC' THEN
        RETURN NULL;
    END IF;
    least := agentguard.first_number(begins);
    above := agentguard.first_number((begins + interval '1 month')::date);
    PERFORM set_config('lock_timeout', '2000', true);
    PERFORM 1 FROM agentguard.run r WHERE r.number >= least AND r.number < above FOR UPDATE;
    IF EXISTS (
        SELECT 1 FROM agentguard.run r WHERE r.number >= least AND r.number < above
            AND (r.state NOT IN ('COMPLETED', 'KILLED', 'FAILED') OR r.ended_ns >= ended_before_ns
                OR r.run_id = ANY (keep))
    ) THEN
        RETURN NULL;
    END IF;
    SELECT coalesce(array_agg(r.run_id ORDER BY r.born), '{}') INTO dropped
    FROM agentguard.run r WHERE r.number >= least AND r.number < above;
    EXECUTE format('DROP TABLE agentguard.%I', partition);
    UPDATE agentguard.run r SET pruning = true WHERE r.number >= least AND r.number < above;
    DELETE FROM agentguard.run r WHERE r.number >= least AND r.number < above;
    RETURN dropped;
END;
$$;

-- --- what a tenant's own login may ask -----------------------------------------------------------
-- Functions and no tables: a query on a table tells, by EXPLAIN, how many rows of others it has passed over.

CREATE FUNCTION agentguard.tenant_runs() RETURNS SETOF agentguard.run
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT * FROM agentguard.run WHERE tenant = agentguard.my_tenant();
$$;

CREATE FUNCTION agentguard.tenant_events(of_run text, after integer) RETURNS SETOF agentguard.event
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT e.* FROM agentguard.run r JOIN agentguard.event e ON e.number = r.number
    WHERE r.run_id = of_run AND r.tenant = agentguard.my_tenant() AND e.tenant = r.tenant AND e.seq > after;
$$;

CREATE FUNCTION agentguard.tenant_tail(after bigint, most integer) RETURNS SETOF agentguard.event
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT * FROM agentguard.tail(after, coalesce(agentguard.my_tenant(), ''), most);
END;
$$;

CREATE FUNCTION agentguard.tenant_accounts() RETURNS SETOF agentguard.account
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT * FROM agentguard.account WHERE tenant = agentguard.my_tenant() AND data IS NOT NULL;
$$;

-- --- rights --------------------------------------------------------------------------------------

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA agentguard FROM PUBLIC;
GRANT EXECUTE ON FUNCTION agentguard.my_tenant(), agentguard.now_at(xid8), agentguard.tenant_runs(),
    agentguard.tenant_events(text, integer), agentguard.tenant_tail(bigint, integer),
    agentguard.tenant_accounts()
    TO agentguard_tenant, agentguard_agent, agentguard_operator;

GRANT EXECUTE ON FUNCTION
    agentguard.enter(), agentguard.tail(bigint, text, integer),
    agentguard.hold(bigint[], text[], text[], bigint[], integer, text),
    agentguard.put(integer, bigint[], integer[], bytea[], bytea[], bytea[], text[], text[]),
    agentguard.append(
        bigint[], integer[], integer, text, bigint[], integer[], bytea[], bytea[], bytea[]
    )
    TO agentguard_agent, agentguard_operator;

GRANT SELECT ON agentguard.run, agentguard.event, agentguard.account TO agentguard_agent, agentguard_operator;
GRANT INSERT ON agentguard.run TO agentguard_agent, agentguard_operator;
GRANT UPDATE (state, ended_ns, epoch, owner, heartbeat_ns, summary) ON agentguard.run
    TO agentguard_agent, agentguard_operator;

GRANT UPDATE (salt, pruning) ON agentguard.run TO agentguard_operator;
GRANT UPDATE (payload) ON agentguard.event TO agentguard_operator;
GRANT DELETE ON agentguard.run, agentguard.event, agentguard.account TO agentguard_operator;
GRANT SELECT, INSERT, DELETE ON agentguard.tenant_login TO agentguard_operator;
GRANT EXECUTE ON FUNCTION
    agentguard.make_partitions(integer), agentguard.drop_month(text, bigint, text[])
    TO agentguard_operator;
