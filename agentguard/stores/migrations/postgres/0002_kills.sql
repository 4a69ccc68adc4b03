-- The control log of many hosts and the reports of their relays; how far readers of the order have come.
--
-- Members of agentguard_agent and agentguard_operator read and add.  A login of one tenant sees nothing of
-- it, since the records of all tenants are one chain: a relay with another login brings kills to its host.

CREATE TABLE agentguard.kill_record (
    seq bigint PRIMARY KEY CHECK (seq > 0),
    body bytea NOT NULL,
    hash bytea NOT NULL
);

-- What a relay says of its host; it says it again every second, so nothing is lost with it.
CREATE UNLOGGED TABLE agentguard.kill_host (
    host text PRIMARY KEY,
    report text NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE agentguard.reader_position (
    reader text PRIMARY KEY,
    position bigint NOT NULL
);

CREATE FUNCTION agentguard.kill_record_follows() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF new.seq > 1 AND NOT EXISTS (SELECT 1 FROM agentguard.kill_record WHERE seq = new.seq - 1) THEN
        RETURN NULL;   -- the one before is missing; nothing is added, which the caller sees
    END IF;
    RETURN new;
END;
$$;
CREATE TRIGGER kill_record_follows BEFORE INSERT ON agentguard.kill_record
FOR EACH ROW EXECUTE FUNCTION agentguard.kill_record_follows();

-- The record goes along, so that a relay has not to ask for it, as long as it is short enough.
CREATE FUNCTION agentguard.kill_record_is_told() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    entry text := '{"hash":"' || encode(new.hash, 'hex') || '","event":' || convert_from(new.body, 'UTF8') || '}';
BEGIN
    PERFORM pg_notify('agentguard_kill', new.seq || CASE WHEN octet_length(entry) < 7900 THEN ' ' || entry ELSE '' END);
    RETURN NULL;
END;
$$;
CREATE TRIGGER kill_record_is_told AFTER INSERT ON agentguard.kill_record
FOR EACH ROW EXECUTE FUNCTION agentguard.kill_record_is_told();

CREATE FUNCTION agentguard.kill_record_stays() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'agentguard: a control record is never changed or removed';
END;
$$;
CREATE TRIGGER kill_record_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON agentguard.kill_record
FOR EACH STATEMENT EXECUTE FUNCTION agentguard.kill_record_stays();

REVOKE ALL ON FUNCTION
    agentguard.kill_record_follows(), agentguard.kill_record_is_told(), agentguard.kill_record_stays()
    FROM PUBLIC;
GRANT SELECT, INSERT ON agentguard.kill_record TO agentguard_agent, agentguard_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON agentguard.kill_host TO agentguard_agent, agentguard_operator;
GRANT SELECT, INSERT, UPDATE ON agentguard.reader_position TO agentguard_operator;
