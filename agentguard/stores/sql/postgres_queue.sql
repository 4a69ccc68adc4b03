-- The queue of submitted runs: Procrastinate's tables in a schema of their own, and who may use them.

-- name: schema
-- Make the schema.
CREATE SCHEMA IF NOT EXISTS agentguard_queue AUTHORIZATION agentguard_owner;

-- name: enter
-- Let Procrastinate's scripts, which name no schema, work in ours.
SET LOCAL search_path TO agentguard_queue, pg_catalog;

-- name: leave
-- Go on in no schema.
SET LOCAL search_path TO pg_catalog;

-- name: versions
-- The table of Procrastinate's scripts that were carried out.
CREATE TABLE IF NOT EXISTS agentguard_queue.migration (
    name text PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- name: applied
-- Procrastinate's scripts that were carried out.
SELECT name FROM agentguard_queue.migration;

-- name: note
-- Note a script that was carried out.
INSERT INTO agentguard_queue.migration (name) VALUES (%s);

-- name: make_way
-- Drop what keeps a migration from changing the table of runs; `rights` makes it anew.
DROP VIEW IF EXISTS agentguard_queue.depth;

-- name: rights
-- Who may do what: members of agentguard_agent put runs into the queue and see no table of it, members of
-- agentguard_worker run workers besides, members of agentguard_operator see how long it is.  Said anew by each
-- migration, since an upgrade of Procrastinate brings tables and functions.
ALTER TABLE agentguard_queue.procrastinate_jobs ENABLE ROW LEVEL SECURITY;
ALTER TABLE agentguard_queue.procrastinate_jobs FORCE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS of_my_tenant ON agentguard_queue.procrastinate_jobs;
CREATE POLICY of_my_tenant ON agentguard_queue.procrastinate_jobs
    USING ((SELECT agentguard.my_tenant()) IS NULL OR args ->> 'tenant' = (SELECT agentguard.my_tenant()));

-- Workers of one tenant see each other, and of the others those that have a run of theirs: should one of these
-- fall silent, they carry its run on.
ALTER TABLE agentguard_queue.procrastinate_workers
    ADD COLUMN IF NOT EXISTS tenant text DEFAULT agentguard.my_tenant();
ALTER TABLE agentguard_queue.procrastinate_workers ENABLE ROW LEVEL SECURITY;
ALTER TABLE agentguard_queue.procrastinate_workers FORCE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS of_my_tenant ON agentguard_queue.procrastinate_workers;
CREATE POLICY of_my_tenant ON agentguard_queue.procrastinate_workers
    USING ((SELECT agentguard.my_tenant()) IS NULL OR tenant = (SELECT agentguard.my_tenant()));
DROP POLICY IF EXISTS with_my_run ON agentguard_queue.procrastinate_workers;
CREATE POLICY with_my_run ON agentguard_queue.procrastinate_workers FOR SELECT
    USING (EXISTS (
        SELECT FROM agentguard_queue.procrastinate_jobs AS job
        WHERE job.worker_id = procrastinate_workers.id AND job.status = 'doing'
    ));

ALTER TABLE agentguard_queue.procrastinate_events ENABLE ROW LEVEL SECURITY;
ALTER TABLE agentguard_queue.procrastinate_events FORCE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS of_my_tenant ON agentguard_queue.procrastinate_events;
CREATE POLICY of_my_tenant ON agentguard_queue.procrastinate_events
    USING ((SELECT agentguard.my_tenant()) IS NULL OR EXISTS (
        SELECT FROM agentguard_queue.procrastinate_jobs AS job WHERE job.id = job_id
    ));

-- Put a run into the queue that this very transaction, or one before it, has created.
CREATE OR REPLACE FUNCTION agentguard_queue.submit(
    queue text, priority integer, of_run text, tenant text, args jsonb
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = agentguard_queue, pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM agentguard.run AS r
        WHERE r.run_id = of_run AND r.tenant = submit.tenant AND r.state = 'CREATED'
    ) THEN
        RETURN false;
    END IF;
    PERFORM procrastinate_defer_jobs_v1(ARRAY[ROW(
        submit.queue, 'agentguard.run', submit.priority, of_run, NULL,
        submit.args || jsonb_build_object('run_id', of_run, 'tenant', submit.tenant), NULL
    )::procrastinate_job_to_defer_v1]);
    RETURN true;
END;
$$;

-- How long each queue is.  `oldest_seconds` is how long the run that waits longest could have been running.
-- A run that was ended while it waited keeps its job until a worker looks at it, and waits no more.
CREATE OR REPLACE VIEW agentguard_queue.depth AS
SELECT job.queue_name::text AS queue,
    count(*) FILTER (WHERE job.status = 'todo' AND due.at <= now()) AS waiting,
    count(*) FILTER (WHERE job.status = 'todo' AND due.at > now()) AS delayed,
    count(*) FILTER (WHERE job.status = 'doing') AS running,
    coalesce(extract(epoch FROM now() - min(due.at) FILTER (WHERE job.status = 'todo' AND due.at <= now())), 0)
        ::double precision AS oldest_seconds
FROM agentguard_queue.procrastinate_jobs AS job
CROSS JOIN LATERAL (
    SELECT greatest(max(event.at), job.scheduled_at) AS at
    FROM agentguard_queue.procrastinate_events AS event
    WHERE event.job_id = job.id AND event.type IN ('deferred', 'deferred_for_retry')
) AS due
WHERE job.status = 'doing' OR (job.status = 'todo' AND EXISTS (
    SELECT FROM agentguard.run
    WHERE run.run_id = job.lock AND run.state IN ('CREATED', 'RUNNING', 'PAUSED')
))
GROUP BY job.queue_name;

-- The workers that have begun and not ended, when each gave its last sign of life, and how many runs it has.
CREATE OR REPLACE VIEW agentguard_queue.worker AS
SELECT worker.id::bigint AS worker_id,
    greatest(extract(epoch FROM now() - worker.last_heartbeat), 0)::double precision AS silent_seconds,
    (SELECT count(*) FROM agentguard_queue.procrastinate_jobs AS job
        WHERE job.worker_id = worker.id AND job.status = 'doing') AS running
FROM agentguard_queue.procrastinate_workers AS worker;

REVOKE ALL ON SCHEMA agentguard_queue FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA agentguard_queue FROM PUBLIC;
GRANT USAGE ON SCHEMA agentguard_queue TO agentguard_agent, agentguard_worker, agentguard_operator;
GRANT EXECUTE ON FUNCTION agentguard_queue.submit(text, integer, text, text, jsonb)
    TO agentguard_agent, agentguard_worker;
GRANT SELECT ON agentguard_queue.depth, agentguard_queue.worker TO agentguard_worker, agentguard_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA agentguard_queue TO agentguard_worker;
REVOKE INSERT, UPDATE, DELETE ON agentguard_queue.migration, agentguard_queue.depth, agentguard_queue.worker
    FROM agentguard_worker;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA agentguard_queue TO agentguard_worker;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA agentguard_queue TO agentguard_worker;

-- name: submit
-- Put a run into the queue; gives whether it is there to be put.
SELECT agentguard_queue.submit(
    %(queue)s, %(priority)s, %(run_id)s, %(tenant)s, %(args)s::jsonb
);

-- name: depth
-- How long each queue is.
SELECT queue, waiting, delayed, running, oldest_seconds FROM agentguard_queue.depth ORDER BY queue;

-- name: workers
-- The workers, the oldest first.
SELECT worker_id, silent_seconds, running FROM agentguard_queue.worker ORDER BY worker_id;

-- name: holds
-- Whether a worker still has a job.
SELECT EXISTS (
    SELECT 1 FROM agentguard_queue.procrastinate_jobs
    WHERE id = %(job_id)s AND status = 'doing' AND worker_id = %(worker_id)s
);

-- What follows is asked by workers, on connections of Procrastinate's, which find its tables by themselves.

-- name: fetch_again
-- Put back what was fetched and never arrived, since the connection broke.
UPDATE procrastinate_jobs SET status = 'todo', attempts = attempts + 1
WHERE worker_id = %(worker_id)s AND status = 'doing' AND id <> ALL (%(taken)s);

-- name: finish
-- Take a job out, if this worker still has it.
DELETE FROM procrastinate_jobs
WHERE id = %(job_id)s AND status = 'doing' AND worker_id IS NOT DISTINCT FROM %(worker_id)s;

-- name: put_back
-- Let a job be fetched again, if it is still with this worker, and wake those who wait.  What Procrastinate has
-- noted of it before goes: a run that is paused for a day would leave thousands of rows.  It is nobody's: else
-- the row of a dead worker, when it goes, would lock the job in the moment in which the others are woken for it.
WITH back AS (
    UPDATE procrastinate_jobs
    SET status = 'todo', worker_id = NULL, attempts = attempts + 1, args = args || %(note)s::jsonb,
        scheduled_at = now() + make_interval(secs => %(delay)s)
    WHERE id = %(job_id)s AND status = 'doing' AND worker_id IS NOT DISTINCT FROM %(worker_id)s
    RETURNING id, queue_name
), gone AS (
    DELETE FROM procrastinate_events WHERE job_id IN (SELECT id FROM back)
), told AS (
    SELECT json_build_object('type', 'job_inserted', 'job_id', id)::text AS payload, queue_name FROM back
)
SELECT pg_notify('procrastinate_any_queue_v1', payload),
    pg_notify('procrastinate_queue_v1#' || queue_name, payload)
FROM told;

-- name: next_silent
-- In how many seconds the next of the other workers will have been silent for too long, should it say nothing.
SELECT extract(epoch FROM min(last_heartbeat) + make_interval(secs => %(stalled_after)s) - now())
    ::double precision AS seconds
FROM procrastinate_workers WHERE id <> %(worker_id)s;

-- name: beat
-- A sign of life; gives no row where others have taken this worker for dead.
UPDATE procrastinate_workers SET last_heartbeat = now() WHERE id = %(worker_id)s RETURNING id;
