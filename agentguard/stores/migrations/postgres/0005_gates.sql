-- What a login of one tenant, or one without any right of ours, can hear, say and see.

-- Channels have no rights: every login of the database may listen to this one and notify on it.  So it says
-- that there is something to read, and nothing of it.
CREATE OR REPLACE FUNCTION agentguard.kill_record_is_told() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_notify('agentguard_kill', '');
    RETURN NULL;
END;
$$;

-- The control log is one chain of all tenants' records.  Agents use it by functions, which refuse a login that
-- is bound to a tenant: a policy would hide rows from it, and what is hidden looks like a log without kills.
REVOKE ALL ON agentguard.kill_record, agentguard.kill_host FROM agentguard_agent, agentguard_operator;

CREATE FUNCTION agentguard.refuse_one_tenant() RETURNS void
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM agentguard.tenant_login WHERE login = session_user) THEN
        RAISE EXCEPTION 'agentguard: a login of one tenant has no right to the control log'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
END;
$$;

CREATE FUNCTION agentguard.control_records(after bigint)
RETURNS TABLE (seq bigint, body bytea, hash bytea)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM agentguard.refuse_one_tenant();
    RETURN QUERY SELECT r.seq, r.body, r.hash FROM agentguard.kill_record r WHERE r.seq > after ORDER BY r.seq;
END;
$$;

-- Add a record unless its number is taken, or the one that it follows is not there; gives whether it was added.
CREATE FUNCTION agentguard.add_control_record(number bigint, body bytea, hash bytea, previous bytea)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM agentguard.refuse_one_tenant();
    INSERT INTO agentguard.kill_record AS r (seq, body, hash)
    SELECT number, add_control_record.body, add_control_record.hash
    WHERE number = 1
        OR EXISTS (SELECT FROM agentguard.kill_record k WHERE k.seq = number - 1 AND k.hash = previous)
    ON CONFLICT DO NOTHING;
    RETURN FOUND;
END;
$$;

-- What the relay of a host says of it takes the place of what it said last.
CREATE FUNCTION agentguard.report_host(of_host text, said text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM agentguard.refuse_one_tenant();
    INSERT INTO agentguard.kill_host AS h (host, report) VALUES (of_host, said)
    ON CONFLICT (host) DO UPDATE SET report = excluded.report, at = clock_timestamp();
END;
$$;

CREATE FUNCTION agentguard.host_reports() RETURNS TABLE (host text, report text, silent double precision)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM agentguard.refuse_one_tenant();
    RETURN QUERY
        SELECT h.host, h.report, extract(epoch FROM clock_timestamp() - h.at)::double precision
        FROM agentguard.kill_host h;
END;
$$;

-- Drop the report of one host, or those that are older than so many seconds.
CREATE FUNCTION agentguard.forget_hosts(of_host text, older_than double precision) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM agentguard.refuse_one_tenant();
    DELETE FROM agentguard.kill_host h
    WHERE h.host = of_host OR h.at < clock_timestamp() - make_interval(secs => older_than);
END;
$$;

-- The setting narrows a login that sees all tenants.  For one that sees no table it is no way to name a
-- tenant: until it is bound it sees nothing.
CREATE OR REPLACE FUNCTION agentguard.my_tenant() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(
        (SELECT tenant FROM agentguard.tenant_login WHERE login = session_user),
        CASE WHEN has_table_privilege(session_user, 'agentguard.run', 'SELECT')
            THEN nullif(current_setting('agentguard.tenant', true), '') END
    );
$$;

-- What the control log says of the limits of a login's own tenant, in order; for agents, and a tenant's login.
CREATE FUNCTION agentguard.tenant_budgets() RETURNS TABLE (tenant text, per text, budget text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT agentguard.my_tenant(), set.data ->> 'per', (set.data -> 'budget')::text
    FROM agentguard.kill_record r,
    LATERAL (
        SELECT CASE WHEN position('"type":"tenant_budget_set"'::bytea IN r.body) > 0
            THEN convert_from(r.body, 'UTF8')::json -> 'data' END AS data
    ) AS set
    WHERE set.data ->> 'tenant' = agentguard.my_tenant() ORDER BY r.seq;
$$;

REVOKE ALL ON FUNCTION
    agentguard.tenant_budgets(),
    agentguard.refuse_one_tenant(), agentguard.control_records(bigint),
    agentguard.add_control_record(bigint, bytea, bytea, bytea), agentguard.report_host(text, text),
    agentguard.host_reports(), agentguard.forget_hosts(text, double precision)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    agentguard.control_records(bigint), agentguard.add_control_record(bigint, bytea, bytea, bytea),
    agentguard.report_host(text, text), agentguard.host_reports(),
    agentguard.forget_hosts(text, double precision)
    TO agentguard_agent, agentguard_operator;
GRANT EXECUTE ON FUNCTION agentguard.tenant_budgets() TO agentguard_tenant, agentguard_agent, agentguard_operator;
