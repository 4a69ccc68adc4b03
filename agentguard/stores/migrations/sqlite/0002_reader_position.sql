-- How far the readers of the order over all runs have come, each by its name.

CREATE TABLE reader_position (
    reader TEXT PRIMARY KEY,
    position INTEGER NOT NULL
) WITHOUT ROWID;
