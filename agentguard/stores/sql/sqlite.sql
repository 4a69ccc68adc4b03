-- The queries of SQLiteEventStore: a name, a line of purpose, the statement.

-- name: insert_event
-- Append one event; a trigger sees to it that it is the next one of its run.
INSERT INTO event (run, seq, body, hash, payload) VALUES (?, ?, ?, ?, ?);

-- name: insert_run
-- Add a run.
INSERT INTO run (
    run_id, name, tenant, state, created_ns, parent_id, ended_ns, epoch, owner, heartbeat_ns,
    salt, summary
) VALUES (
    :run_id, :name, :tenant, :state, :created_ns, :parent_id, :ended_ns, :epoch, :owner,
    :heartbeat_ns, :salt, :summary
);

-- name: change_run
-- Write what may change of a run, unless a later claim has been made; never its salt.
UPDATE run SET
    state = :state, ended_ns = :ended_ns, epoch = :epoch, owner = :owner,
    heartbeat_ns = :heartbeat_ns, summary = :summary
WHERE number = :number AND epoch <= :epoch;

-- name: update_owner
-- Claim a run with the next epoch, or beat or release the claim that is held.
UPDATE run SET epoch = :epoch, owner = :owner, heartbeat_ns = :heartbeat_ns
WHERE run_id = :run_id
    AND (epoch = :epoch - 1 OR (epoch = :epoch AND (owner = :owner OR :owner = '{}')));

-- name: run
-- One run.
SELECT run_id, name, tenant, state, created_ns, number, parent_id, ended_ns, epoch, owner,
    heartbeat_ns, salt, summary
FROM run WHERE run_id = ?;

-- name: runs
-- The newest runs.
SELECT run_id, name, tenant, state, created_ns, number, parent_id, ended_ns, epoch, owner,
    heartbeat_ns, salt, summary
FROM run ORDER BY number DESC LIMIT :limit;

-- name: runs_of_tenant
-- The newest runs of a tenant.
SELECT run_id, name, tenant, state, created_ns, number, parent_id, ended_ns, epoch, owner,
    heartbeat_ns, salt, summary
FROM run WHERE tenant = :tenant ORDER BY number DESC LIMIT :limit;

-- name: runs_in_state
-- The newest runs in a state.
SELECT run_id, name, tenant, state, created_ns, number, parent_id, ended_ns, epoch, owner,
    heartbeat_ns, salt, summary
FROM run WHERE state = :state ORDER BY number DESC LIMIT :limit;

-- name: runs_of_tenant_in_state
-- The newest runs of a tenant in a state.
SELECT run_id, name, tenant, state, created_ns, number, parent_id, ended_ns, epoch, owner,
    heartbeat_ns, salt, summary
FROM run WHERE tenant = :tenant AND state = :state ORDER BY number DESC LIMIT :limit;

-- name: children
-- The runs nested directly in a run, oldest first.
SELECT run_id, name, tenant, state, created_ns, number, parent_id, ended_ns, epoch, owner,
    heartbeat_ns, salt, summary
FROM run WHERE parent_id = ? ORDER BY number;

-- name: events
-- The events of a run after a sequence.
SELECT event.seq, event.body, event.hash, event.payload, event.position
FROM run JOIN event ON event.run = run.number
WHERE run.run_id = ? AND event.seq > ? ORDER BY event.seq;

-- name: last_event
-- The newest event of a run.
SELECT event.seq, event.body, event.hash, event.payload, event.position
FROM run JOIN event ON event.run = run.number
WHERE run.run_id = ? ORDER BY event.seq DESC LIMIT 1;

-- name: tail
-- The events of all runs after a position.
SELECT run.run_id, event.seq, event.body, event.hash, event.payload, event.position
FROM event CROSS JOIN run ON run.number = event.run
WHERE event.position > :after ORDER BY event.position LIMIT :limit;

-- name: tail_of_tenant
-- The events of a tenant's runs after a position.
SELECT run.run_id, event.seq, event.body, event.hash, event.payload, event.position
FROM event CROSS JOIN run ON run.number = event.run
WHERE event.position > :after AND run.tenant = :tenant ORDER BY event.position LIMIT :limit;

-- name: head
-- The newest sequence of a run, or NULL, if there is such a run.
SELECT (SELECT max(seq) FROM event WHERE run = number) FROM run WHERE number = ?;

-- name: account
-- One shared account.
SELECT data FROM account WHERE id = ?;

-- name: save_account
-- Write a shared account.
INSERT INTO account (id, data) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET data = excluded.data;

-- name: erase_payloads
-- Drop the payloads of a run.
UPDATE event SET payload = NULL
WHERE run = (SELECT number FROM run WHERE run_id = ?) AND payload IS NOT NULL;

-- name: erase_salt
-- Drop the salt of a run, without which its digests say nothing.
UPDATE run SET salt = NULL WHERE run_id = ? AND salt IS NOT NULL;

-- name: prunable
-- The ended runs that ended before a time.
SELECT number, run_id FROM run
WHERE ended_ns < ? AND state IN ('COMPLETED', 'KILLED', 'FAILED') ORDER BY number;

-- name: mark_pruning
-- Let the events of a run be deleted.
UPDATE run SET pruning = 1 WHERE number = ? AND state IN ('COMPLETED', 'KILLED', 'FAILED');

-- name: newest_event
-- Whose event has the highest position, and which.
SELECT run, position FROM event ORDER BY position DESC LIMIT 1;

-- name: hold_position
-- Keep a position above those that are about to go from being given again.
INSERT INTO event (run, seq, body, hash) VALUES (0, ?, x'', x'');

-- name: drop_held_positions
-- Drop older held positions.
DELETE FROM event WHERE run = 0 AND seq < ?;

-- name: delete_events
-- Delete the events of a run that is being pruned.
DELETE FROM event WHERE run = ?;

-- name: delete_run
-- Delete a run whose events are gone.
DELETE FROM run WHERE number = ?;
