-- The queries of PostgresEventStore: a name, a line of purpose, the statement.

-- name: create_run
-- Add a run; gives its number, and no row where the id is taken.
INSERT INTO agentguard.run (
    number, run_id, born, tenant, name, state, created_ns, parent_id, ended_ns, epoch, owner, heartbeat_ns,
    salt, summary
) VALUES (
    (extract(epoch FROM now())::bigint / 86400) << 47 | %(random)s,
    %(run_id)s, agentguard.now_at(pg_current_xact_id()) + %(placed)s, %(tenant)s, %(name)s, %(state)s,
    %(created_ns)s, %(parent_id)s, %(ended_ns)s, %(epoch)s, %(owner)s, %(heartbeat_ns)s, %(salt)s,
    %(summary)s
) ON CONFLICT (run_id) DO NOTHING
RETURNING number;

-- name: server_time
-- What time it is, in nanoseconds.
SELECT (extract(epoch FROM clock_timestamp()) * 1000000000)::bigint;

-- name: change_run
-- Write what may change of a run that is held; never its salt.
UPDATE agentguard.run
SET state = $2, ended_ns = $3, epoch = $4, owner = $5, heartbeat_ns = $6, summary = $7 WHERE number = $1;

-- name: update_owner
-- Claim a run with the next epoch, or beat or release the claim that is held.
UPDATE agentguard.run SET epoch = %(epoch)s, owner = %(owner)s, heartbeat_ns = %(heartbeat_ns)s
WHERE run_id = %(run_id)s
    AND (epoch = %(epoch)s - 1 OR (epoch = %(epoch)s AND (owner = %(owner)s OR %(owner)s = '{}')));

-- name: begin
-- Begin a transaction that sees what it has waited for, whatever the login's default is.
BEGIN ISOLATION LEVEL READ COMMITTED;

-- name: commit
-- End it.
COMMIT;

-- name: hold
-- Lock runs and accounts, and tell heads, epochs and what the accounts hold; and in seconds when this
-- transaction began, and when everything was locked.
SELECT number, head, hash, epoch, id, data,
    floor(extract(epoch FROM now()))::bigint, floor(extract(epoch FROM clock_timestamp()))::bigint
FROM agentguard.hold($1, $2, $3, $4, $5, $6);

-- name: put
-- Append to runs, and write accounts, that are held.
SELECT agentguard.put($1, $2, $3, $4, $5, $6, $7, $8);

-- name: append
-- Append to a run; tells by a letter what became of it, and then what the accounts that it charged hold.
SELECT agentguard.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);

-- name: lock_run
-- Keep other writers of a run out.
SELECT number FROM agentguard.run WHERE run_id = %s FOR UPDATE;

-- name: parent
-- The run around a run.
SELECT parent_id FROM agentguard.run WHERE run_id = %s;

-- name: narrow
-- Let the transaction see one tenant alone.
SELECT set_config('agentguard.tenant', %s, true);

-- name: hashes
-- The hashes of single events, to tell whether a commit whose answer was lost was carried out.
SELECT number, seq, hash FROM agentguard.event
WHERE (number, seq) IN (SELECT * FROM unnest(%s::bigint[], %s::integer[]));

-- name: run
-- One run.
SELECT run_id, name, tenant, state, created_ns, number, parent_id, ended_ns, epoch, owner, heartbeat_ns,
    salt, summary
FROM {run} WHERE run_id = %(run_id)s;

-- name: runs
-- The newest runs, of a tenant and in a state where these are given.
SELECT run_id, name, tenant, state, created_ns, number, parent_id, ended_ns, epoch, owner, heartbeat_ns,
    salt, summary
FROM {run} WHERE {which} ORDER BY born DESC LIMIT %(limit)s;

-- name: neighbours
-- The ids just before and after one, in the order of their bytes.
SELECT
    (SELECT run_id FROM agentguard.run WHERE run_id < %(run_id)s ORDER BY run_id DESC LIMIT 1),
    (SELECT run_id FROM agentguard.run WHERE run_id > %(run_id)s ORDER BY run_id LIMIT 1);

-- name: tenant_neighbours
-- The same for a tenant's own login.
SELECT before, after FROM agentguard.tenant_neighbours(%(run_id)s);

-- name: children
-- The runs nested directly in a run, oldest first.
SELECT run_id, name, tenant, state, created_ns, number, parent_id, ended_ns, epoch, owner, heartbeat_ns,
    salt, summary
FROM {run} WHERE parent_id = %(run_id)s ORDER BY born;

-- name: events
-- The next events of a run after a sequence, and up to one, each with the run's last sequence.
SELECT seq, body, hash, payload, position, (SELECT max(seq) FROM agentguard.event WHERE number = run.number)
FROM (SELECT number FROM agentguard.run WHERE run_id = %(run_id)s) AS run
JOIN agentguard.event USING (number)
WHERE seq > %(after)s AND seq <= %(upto)s ORDER BY seq LIMIT %(limit)s;

-- name: tenant_events
-- The same for a tenant's own login.
SELECT seq, body, hash, payload, position, max(seq) OVER ()
FROM agentguard.tenant_events(%(run_id)s, %(after)s)
WHERE seq <= %(upto)s ORDER BY seq LIMIT %(limit)s;

-- name: last_event
-- The newest event of a run.
SELECT seq, body, hash, payload, position FROM agentguard.event
WHERE number = (SELECT number FROM agentguard.run WHERE run_id = %(run_id)s)
ORDER BY seq DESC LIMIT 1;

-- name: tenant_last_event
-- The same for a tenant's own login.
SELECT seq, body, hash, payload, position FROM agentguard.tenant_events(%(run_id)s, 0)
ORDER BY seq DESC LIMIT 1;

-- name: tail
-- The events of all runs, or of a tenant's, after a position, as far as nothing can come between them.
SELECT run.run_id, event.seq, event.body, event.hash, event.payload, event.position
FROM agentguard.tail(%(after)s, %(tenant)s, %(limit)s) AS event
JOIN agentguard.run ON run.number = event.number
ORDER BY event.position;

-- name: tenant_tail
-- The same for a tenant's own login.
SELECT run.run_id, event.seq, event.body, event.hash, event.payload, event.position
FROM agentguard.tenant_tail(%(after)s, %(limit)s) AS event
JOIN agentguard.tenant_runs() AS run ON run.number = event.number
WHERE %(tenant)s::text IS NULL OR event.tenant = %(tenant)s
ORDER BY event.position;

-- name: accounts
-- Shared accounts by id.
SELECT id, data FROM {account} WHERE id = ANY (%s) AND data IS NOT NULL;

-- name: account_ids
-- The names of all shared accounts.
SELECT id FROM {account} WHERE data IS NOT NULL ORDER BY id;

-- name: own_budgets
-- The budgets that were set for the tenant of this login, oldest first.
SELECT tenant, per, budget FROM agentguard.tenant_budgets();

-- name: is_tenant
-- Whether this login is a tenant's own, which sees no table.
SELECT NOT has_table_privilege('agentguard.run', 'SELECT');

-- name: bypasses
-- Whether row-level security does not bind this login.
SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user;

-- name: is_behind
-- Whether there are positions that are still to be given: the database was restored into another server.
SELECT coalesce(max(position), 0) > agentguard.now_at(pg_snapshot_xmax(pg_current_snapshot()))
FROM agentguard.event;

-- name: erase_payloads
-- Drop the payloads of a run.
UPDATE agentguard.event SET payload = NULL
WHERE number = (SELECT number FROM agentguard.run WHERE run_id = %s) AND payload IS NOT NULL;

-- name: erase_salt
-- Drop the salt of a run, without which its digests say nothing.
UPDATE agentguard.run SET salt = NULL WHERE run_id = %s AND salt IS NOT NULL;

-- name: months
-- The partitions of events that are months, the oldest first.
SELECT child.relname FROM pg_inherits
JOIN pg_class AS child ON child.oid = inhrelid
WHERE inhparent = 'agentguard.event'::regclass AND child.relname ~ '^event_[0-9]{4}_[0-9]{2}$' ORDER BY 1;

-- name: drop_month
-- Drop a month all of whose runs may be pruned.
SELECT agentguard.drop_month(%s, %s, %s);

-- name: prunable
-- The ended runs that ended before a time.
SELECT number, run_id FROM agentguard.run
WHERE ended_ns < %s AND state IN ('COMPLETED', 'KILLED', 'FAILED') ORDER BY born;

-- name: mark_pruning
-- Let the events of a run be deleted.
UPDATE agentguard.run SET pruning = true
WHERE number = %s AND state IN ('COMPLETED', 'KILLED', 'FAILED');

-- name: delete_events
-- Delete the events of a run that is being pruned.
DELETE FROM agentguard.event WHERE number = %s;

-- name: delete_run
-- Delete a run whose events are gone.
DELETE FROM agentguard.run WHERE number = %s;

-- name: delete_accounts
-- Delete the accounts of a run and of its scopes, but for those of another run whose id begins like one.
DELETE FROM agentguard.account
WHERE id IN ('run:' || %(run_id)s, 'attach:' || %(run_id)s)
    OR starts_with(id, 'run:' || %(run_id)s || '/') AND NOT EXISTS (
        SELECT 1 FROM agentguard.run AS other
        WHERE starts_with(other.run_id, %(run_id)s || '/')
            AND (account.id = 'run:' || other.run_id OR starts_with(account.id, 'run:' || other.run_id || '/'))
    );

-- name: position
-- How far a reader has come.
SELECT position FROM agentguard.reader_position WHERE reader = %s;

-- name: positions
-- How far every reader has come.
SELECT reader, position FROM agentguard.reader_position ORDER BY reader;

-- name: save_position
-- A reader goes on, and never back.
INSERT INTO agentguard.reader_position (reader, position) VALUES (%s, %s)
ON CONFLICT (reader) DO UPDATE SET position = greatest(reader_position.position, excluded.position);

-- name: bind_login
-- Bind a login to a tenant; gives the tenant that it is bound to.
WITH bound AS (
    INSERT INTO agentguard.tenant_login (login, tenant) VALUES (%s, %s)
    ON CONFLICT (login) DO NOTHING RETURNING tenant
)
SELECT tenant FROM bound UNION ALL SELECT tenant FROM agentguard.tenant_login WHERE login = %s;
