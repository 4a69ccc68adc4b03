-- A month is dropped whole only by who sees the runs of all tenants, and while nobody writes: a run that was
-- being created as its month ended was not seen, and went with it.

-- Drop the partition of a month of which every run has ended before a time; returns the ids of its runs, or
-- NULL where one of them has not, or is not to be seen.
CREATE OR REPLACE FUNCTION agentguard.drop_month(partition text, ended_before_ns bigint, keep text[]) RETURNS text[]
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
    IF begins + interval '1 month' > now() AT TIME ZONE 'UTC' OR agentguard.my_tenant() IS NOT NULL THEN
        RETURN NULL;
    END IF;
    least := agentguard.first_number(begins);
    above := agentguard.first_number((begins + interval '1 month')::date);
    FOR look IN 1..2 LOOP -- first without keeping anybody waiting
        IF to_regclass('agentguard.' || partition) IS NULL OR EXISTS (
            SELECT 1 FROM agentguard.run r WHERE r.number >= least AND r.number < above
                AND (r.state NOT IN ('COMPLETED', 'KILLED', 'FAILED') OR r.ended_ns >= ended_before_ns
                    OR r.run_id = ANY (keep))
        ) THEN
            RETURN NULL;
        END IF;
        IF look = 1 THEN
            PERFORM set_config('lock_timeout', '2000', true);
            LOCK TABLE ONLY agentguard.event IN ACCESS EXCLUSIVE MODE;
        END IF;
    END LOOP;
    SELECT coalesce(array_agg(r.run_id ORDER BY r.born), '{}') INTO dropped
    FROM agentguard.run r WHERE r.number >= least AND r.number < above;
    EXECUTE format('DROP TABLE agentguard.%I', partition);
    UPDATE agentguard.run r SET pruning = true WHERE r.number >= least AND r.number < above;
    DELETE FROM agentguard.run r WHERE r.number >= least AND r.number < above;
    RETURN dropped;
END;
$$;
