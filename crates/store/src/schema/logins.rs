//! Version 6: whose messages it were. A worker is its login and the instance that it chose, so no login changes the row of
//! another one's worker.

use crate::address::address_text;

// chunks.login: the login of the broker under which the stored result was published; NULL within one process, and for results
// that an older version stored.
// workers: those of older versions are not kept. Their heartbeats have no login, and each worker that is upgraded starts as
// another row.
// workers.login: '' within one process.
// in_hand: who has an outstanding chunk in hand. One row for each such chunk, so what a heartbeat claims cannot make more rows
// than there are chunks. counts_until_us: from then on the claim does not keep the chunk from being published again.
// claims: since when a login claims a chunk, counted anew when the chunk is published again (published_at_us is another one).
// Removed when the chunk is settled.
pub(super) const LOGINS: &str = concat!(
    r"
ALTER TABLE chunks ADD COLUMN login TEXT;
ALTER TABLE quarantine ADD COLUMN login TEXT;

DROP VIEW report;
DROP VIEW latest;
DROP VIEW run_summary;
DROP TABLE in_hand;
DROP TABLE workers;

CREATE TABLE workers (
    login         TEXT    NOT NULL,
    instance      BLOB    NOT NULL CHECK (length(instance) = 16),
    worker        TEXT    NOT NULL,
    pid           INTEGER NOT NULL,
    version       TEXT    NOT NULL,
    worker_group  TEXT    NOT NULL,
    threads       INTEGER NOT NULL,
    prefetch      INTEGER NOT NULL,
    rate          INTEGER,
    first_seen_us INTEGER NOT NULL,
    last_seen_us  INTEGER NOT NULL,
    draining      INTEGER NOT NULL,
    chunks_done   INTEGER NOT NULL,
    targets_done  INTEGER NOT NULL,
    requests_sent INTEGER NOT NULL,
    replies       INTEGER NOT NULL,
    lost_socket_drops INTEGER NOT NULL,
    lost_send_path    INTEGER NOT NULL,
    lost_stalled      INTEGER NOT NULL,
    lost_canary       INTEGER NOT NULL,
    lost_interrupted  INTEGER NOT NULL,
    lost_link_down      INTEGER NOT NULL,
    lost_no_route       INTEGER NOT NULL,
    lost_no_address     INTEGER NOT NULL,
    lost_gateway_no_arp INTEGER NOT NULL,
    lost_local_firewall INTEGER NOT NULL,
    lost_rp_filter      INTEGER NOT NULL,
    heartbeat_us        INTEGER,
    heartbeat_before_us INTEGER,
    requests_before     INTEGER,
    PRIMARY KEY (login, instance)
) STRICT, WITHOUT ROWID;

CREATE TABLE in_hand (
    run             INTEGER NOT NULL,
    chunk           INTEGER NOT NULL,
    login           TEXT    NOT NULL,
    instance        BLOB    NOT NULL,
    taken_at_us     INTEGER NOT NULL,
    counts_until_us INTEGER NOT NULL,
    PRIMARY KEY (run, chunk)
) STRICT, WITHOUT ROWID;
CREATE INDEX in_hand_of_workers ON in_hand (login, instance);

CREATE TABLE claims (
    run             INTEGER NOT NULL,
    chunk           INTEGER NOT NULL,
    login           TEXT    NOT NULL,
    published_at_us INTEGER NOT NULL,
    first_us        INTEGER NOT NULL,
    PRIMARY KEY (run, chunk, login)
) STRICT, WITHOUT ROWID;

CREATE VIEW report AS
SELECT ",
    report_columns!(),
    r"
FROM results r",
    report_joins!(),
    r";

CREATE VIEW latest AS
SELECT ",
    report_columns!(),
    ",
       ",
    latest_columns!(),
    ",
       ",
    changes_30d!(),
    latest_joins!(),
    r";

-- A run with outstanding chunks is running while its producer renews the lease. A run whose producer has left in order is
-- running while the writer is alive, all its outstanding chunks are published, and workers have chunks in hand: those of
-- this run, or those before it in the queue. Otherwise nothing completes it, and it is incomplete.
CREATE VIEW run_summary AS
SELECT run,
       run_id,
       CASE WHEN state = 'running' AND chunks_done < chunks AND NOT CASE
                WHEN lease_renewed_us IS NOT NULL
                THEN lease_renewed_us > (CAST(strftime('%s', 'now') AS INTEGER) - 15) * 1000000
                ELSE transport = 'broker'
                 AND EXISTS (SELECT 1 FROM writers w
                             WHERE w.transport = 'broker'
                               AND w.seen_us > (CAST(strftime('%s', 'now') AS INTEGER) - 15) * 1000000)
                 AND EXISTS (SELECT 1 FROM workers w CROSS JOIN in_hand h ON h.login = w.login AND h.instance = w.instance
                             WHERE w.last_seen_us > (CAST(strftime('%s', 'now') AS INTEGER) - 30) * 1000000)
                 AND NOT EXISTS (SELECT 1 FROM chunks c WHERE c.run = runs.run AND c.published_at_us IS NULL
                                   AND (c.state <= 1 OR (c.state = 2 AND c.retrying = 1)))
                END
            THEN 'incomplete' ELSE state END AS state,
       strftime('%Y-%m-%dT%H:%M:%fZ', started_at_us / 1000000.0, 'unixepoch')  AS started_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', finished_at_us / 1000000.0, 'unixepoch') AS finished_at,
       targets, chunks, chunks_done, up, late, unreachable, dns_failed, send_failed, unknown, down,
       duplicates, redelivered, parent_run
FROM runs;
"
);
