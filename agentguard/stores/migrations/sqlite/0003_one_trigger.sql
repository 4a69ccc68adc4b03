-- One trigger where there were two: an append of a step asks its questions once.

DROP TRIGGER event_follows;
DROP TRIGGER event_is_late;

-- The first question is quick, and rules out most: not the next event of a run, or of one that the feed has whole.
CREATE TRIGGER event_follows BEFORE INSERT ON event
WHEN (SELECT max(key) FROM event WHERE key <= new.key) IS NOT new.key - 1
    OR (SELECT fed FROM run WHERE number = new.key >> 32) IS NOT 0
BEGIN
    -- That the key is free is checked for INSERT OR REPLACE, which runs no DELETE trigger.
    SELECT RAISE(ABORT, 'agentguard: an event is appended after the last one of its run')
    WHERE CASE
        WHEN new.key & 4294967295 > 1
            THEN (SELECT max(key) FROM event WHERE key <= new.key) IS NOT new.key - 1
        ELSE new.key & 4294967295 = 0
            OR NOT EXISTS (SELECT 1 FROM run WHERE number = new.key >> 32)
            OR EXISTS (SELECT 1 FROM event WHERE key = new.key)
        END;
    -- A step that was in flight when its run ended settles late.
    UPDATE run SET fed = 0 WHERE number = new.key >> 32 AND fed = 1;
END;
