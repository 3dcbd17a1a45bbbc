//! Tables, views and migrations. Invariant: a released migration is never changed. Changes are further migrations.
//!
//! The key is (run, chunk[, position]), so the rows of a run are stored together in the order of its plan.
//! `results` and `latest_rows` have a row for each target. They leave out what follows from other columns, and the views
//! derive it.

use self::logins::LOGINS;
use crate::{address::address_text, chunk_state::chunk_state, prune::PRUNED_RUNS};

/// `PRAGMA application_id`: "PFLT" in ASCII (<https://www.sqlite.org/fileformat.html>, offset 68).
pub(crate) const APPLICATION_ID: i32 = 0x5046_4c54;

/// The migrations; the n-th one leads to `user_version` n + 1.
pub(crate) const MIGRATIONS: &[&str] = &[V1, V2, PRUNED_RUNS, V4, V5, LOGINS];

// The view `run_summary` has the lease as a number.
const _: () = assert!(pingfleet_wire::timing::RUN_LEASE.as_secs() == 15);

/// The schema version that this build writes.
pub(crate) const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// The columns of `report`, with which `latest` begins. Before version 6 there was no login.
macro_rules! report_columns {
    () => {
        report_columns!(
            "c.login                                            AS login,
       "
        )
    };
    ($login:literal) => {
        concat!(
            r"r.run                                              AS run,
       n.run_id                                           AS run_id,
       coalesce(r.name, ",
            address_text!("r.address"),
            r") AS target,
       ",
            address_text!("r.address"),
            r" AS address,
       CASE r.status WHEN 0 THEN 'up' WHEN 1 THEN 'late' WHEN 2 THEN 'unreachable' WHEN 3 THEN 'dns_failed'
                     WHEN 4 THEN 'send_failed' WHEN 5 THEN 'unknown' WHEN 6 THEN 'down' END AS status,
       r.reason                                           AS reason,
       r.sent                                             AS sent,
       r.received                                         AS received,
       CASE WHEN r.sent > 0 THEN 100.0 * (r.sent - r.received) / r.sent END AS loss_pct,
       coalesce(r.rtt_min_ns, r.rtt_avg_ns) / 1000000.0   AS rtt_min_ms,
       r.rtt_avg_ns / 1000000.0                           AS rtt_avg_ms,
       coalesce(r.rtt_max_ns, r.rtt_avg_ns) / 1000000.0   AS rtt_max_ms,
       CASE WHEN r.rtt_avg_ns IS NOT NULL THEN coalesce(r.rtt_stddev_ns, 0) / 1000000.0 END AS rtt_stddev_ms,
       r.attempts                                         AS attempts,
       c.worker                                           AS worker,
       ",
            $login,
            r"strftime('%Y-%m-%dT%H:%M:%fZ', (c.started_at_us + r.probed_after_us) / 1000000.0, 'unixepoch') AS probed_at,
       l.labels                                           AS labels"
        )
    };
}

/// The labels and the worker of `results r`.
macro_rules! report_joins {
    () => {
        r"
JOIN runs n ON n.run = r.run
JOIN chunks c ON c.run = r.run AND c.chunk = r.chunk
LEFT JOIN labels l ON l.run = r.run AND l.chunk = r.chunk AND l.position = r.position"
    };
}

/// The rows of `report` for run ?1, with their key (chunk, position) before the columns.
macro_rules! rows_of_run {
    () => {
        concat!(
            "SELECT r.chunk AS row_chunk, r.position AS row_position, ",
            report_columns!(),
            " FROM results r ",
            report_joins!(),
            " WHERE r.run = ?1"
        )
    };
}

/// Those behind the key (?2, ?3).
pub(crate) const REPORT_PAGE: &str =
    concat!(rows_of_run!(), " AND (r.chunk, r.position) > (?2, ?3)");

/// Those of the chunks ?2 to ?3.
pub(crate) const REPORT_CHUNKS: &str = concat!(rows_of_run!(), " AND r.chunk BETWEEN ?2 AND ?3");

/// The one with the key (?2, ?3).
pub(crate) const REPORT_ROW: &str =
    concat!(rows_of_run!(), " AND r.chunk = ?2 AND r.position = ?3");

/// What `latest` adds to the columns of `report`, but the changes.
macro_rules! latest_columns {
    () => {
        r"strftime('%Y-%m-%dT%H:%M:%fZ', t.first_seen_us / 1000000.0, 'unixepoch') AS first_seen,
       strftime('%Y-%m-%dT%H:%M:%fZ',
                CASE WHEN t.status <= 1 THEN t.probed_at_us ELSE t.last_up_us END / 1000000.0, 'unixepoch') AS last_up,
       strftime('%Y-%m-%dT%H:%M:%fZ',
                coalesce(t.changed_at_us, t.first_seen_us) / 1000000.0, 'unixepoch') AS changed_at"
    };
}

/// The rows of `latest`.
macro_rules! latest_joins {
    () => {
        concat!(
            r"
FROM latest_rows t
JOIN results r ON r.run = t.run AND r.chunk = t.chunk AND r.position = t.position",
            report_joins!()
        )
    };
}

/// The changes of `latest_rows t` in the last 30 days.
macro_rules! changes_30d {
    () => {
        r"(SELECT count(*) FROM status_changes s WHERE s.target = t.target
           AND s.changed_at_us > (CAST(strftime('%s', 'now') AS INTEGER) - 2592000) * 1000000) AS changes_30d"
    };
}

/// The key of a row of `latest_rows t`, its place in `results`, and its times as they are stored.
macro_rules! stored_latest {
    () => {
        "t.target AS row_target, t.run AS row_run, t.chunk AS row_chunk, t.position AS row_position,
       t.first_seen_us AS row_first_seen_us,
       CASE WHEN t.status <= 1 THEN t.probed_at_us ELSE t.last_up_us END AS row_last_up_us,
       coalesce(t.changed_at_us, t.first_seen_us) AS row_changed_us,
       "
    };
}

/// The rows of `latest`: what is stored of them, and the columns of the view.
macro_rules! rows_of_latest {
    () => {
        concat!(
            "SELECT ",
            stored_latest!(),
            report_columns!(),
            ",
       ",
            latest_columns!(),
            ",
       ",
            changes_30d!(),
            latest_joins!()
        )
    };
}

/// It uses the macros above.
mod logins;

/// Those behind the key ?1, up to the key ?2.
pub(crate) const LATEST_RANGE: &str =
    concat!(rows_of_latest!(), " WHERE t.target > ?1 AND t.target <= ?2");

/// The same rows as they are stored, with their changes, without a look at another row.
pub(crate) const STORED_LATEST_RANGE: &str = concat!(
    "SELECT ",
    stored_latest!(),
    changes_30d!(),
    " FROM latest_rows t WHERE t.target > ?1 AND t.target <= ?2"
);

/// That with the key ?1.
pub(crate) const STORED_LATEST_ROW: &str = concat!(
    "SELECT ",
    stored_latest!(),
    changes_30d!(),
    " FROM latest_rows t WHERE t.target = ?1"
);

/// The row of `latest` with the key ?1.
pub(crate) const LATEST_ROW: &str = concat!(rows_of_latest!(), " WHERE t.target = ?1");

const V1: &str = concat!(
    r"
-- checked_us: when the last check of the whole file beside the work began that found no damage.
CREATE TABLE database (
    id             INTEGER PRIMARY KEY CHECK (id = 1),
    uuid           BLOB    NOT NULL CHECK (length(uuid) = 16),
    created_at_us  INTEGER NOT NULL,
    checked_us     INTEGER
) STRICT;

-- AUTOINCREMENT: the number of a removed run is never given to another one.
-- parent_run: the run whose targets this one probes again.
-- finished_at_us: when the run got its last state and `latest` had its rows.
CREATE TABLE runs (
    run              INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id           TEXT    NOT NULL UNIQUE,
    state            TEXT    NOT NULL CHECK (state IN ('planning', 'running', 'complete', 'incomplete', 'cancelled')),
    transport        TEXT    NOT NULL CHECK (transport IN ('sweep', 'broker')),
    source           TEXT    NOT NULL,
    probing          TEXT    NOT NULL CHECK (json_valid(probing)),
    seed             INTEGER,
    started_at_us    INTEGER NOT NULL,
    finished_at_us   INTEGER,
    lease_renewed_us INTEGER,
    worst_chunk_us   INTEGER NOT NULL,
    targets          INTEGER NOT NULL DEFAULT 0,
    chunks           INTEGER NOT NULL DEFAULT 0,
    chunks_done      INTEGER NOT NULL DEFAULT 0,
    chunks_dead      INTEGER NOT NULL DEFAULT 0,
    up               INTEGER NOT NULL DEFAULT 0,
    late             INTEGER NOT NULL DEFAULT 0,
    unreachable      INTEGER NOT NULL DEFAULT 0,
    dns_failed       INTEGER NOT NULL DEFAULT 0,
    send_failed      INTEGER NOT NULL DEFAULT 0,
    unknown          INTEGER NOT NULL DEFAULT 0,
    down             INTEGER NOT NULL DEFAULT 0,
    duplicates       INTEGER NOT NULL DEFAULT 0,
    redelivered      INTEGER NOT NULL DEFAULT 0,
    parent_run       INTEGER REFERENCES runs (run) ON DELETE SET NULL
) STRICT;

-- The runs that a starting role looks for, among thousands of old ones.
CREATE INDEX unfinished_runs ON runs (state) WHERE state = 'planning' OR state = 'running';
CREATE INDEX unfinished_cancellings ON runs (state) WHERE state = 'cancelled' AND finished_at_us IS NULL;

-- The encoded work messages. Never changed after the planning.
-- With a rowid: a page of such a table has place for two messages of the usual 1.5 KB. WITHOUT ROWID keeps at most a
-- quarter of a page of each and puts the rest on a page of its own.
CREATE TABLE plan (
    run     INTEGER NOT NULL,
    chunk   INTEGER NOT NULL,
    token   BLOB    NOT NULL CHECK (length(token) = 16),
    work    BLOB    NOT NULL,
    PRIMARY KEY (run, chunk)
) STRICT;

CREATE TABLE labels (
    run      INTEGER NOT NULL,
    chunk    INTEGER NOT NULL,
    position INTEGER NOT NULL,
    labels   TEXT    NOT NULL CHECK (json_valid(labels)),
    PRIMARY KEY (run, chunk, position)
) STRICT, WITHOUT ROWID;

-- state: the code of a ChunkState. A dead chunk with retrying = 1 is published again.
-- published_round: the publish_round in which it was sent; 0 when it was sent more than once, -1 when an earlier producer
-- may have sent it.
-- work_group: the group of workers that probes the chunk; '' is the default group. Today there is no other one.
-- published_at_us: when it was sent last; negative when the broker has removed that message since, at this time.
-- started_at_us: when the worker began with the chunk, once it is done.
CREATE TABLE chunks (
    run             INTEGER NOT NULL,
    chunk           INTEGER NOT NULL,
    state           INTEGER NOT NULL DEFAULT ",
    chunk_state!(Planned),
    " CHECK (state BETWEEN ",
    chunk_state!(Planned),
    " AND ",
    chunk_state!(Done),
    r"),
    targets         INTEGER NOT NULL,
    publishes       INTEGER NOT NULL DEFAULT 0,
    published_at_us INTEGER,
    published_round INTEGER NOT NULL DEFAULT 0,
    retrying        INTEGER NOT NULL DEFAULT 0,
    dead_reason     TEXT,
    worker          TEXT,
    settled_at_us   INTEGER,
    started_at_us   INTEGER,
    work_group      TEXT    NOT NULL DEFAULT '',
    PRIMARY KEY (run, chunk)
) STRICT, WITHOUT ROWID;

-- status: the code of a Status. probed_after_us: since the chunk's started_at_us.
-- address: an IPv4 address is an integer, its number - 2^31, which takes at most 4 bytes. Another one is a text.
-- rtt_min_ns and rtt_max_ns are NULL when they are equal to rtt_avg_ns; rtt_stddev_ns is NULL when it is 0.
-- name: the target's text if it is not an address.
CREATE TABLE results (
    run             INTEGER NOT NULL,
    chunk           INTEGER NOT NULL,
    position        INTEGER NOT NULL,
    status          INTEGER NOT NULL CHECK (status BETWEEN 0 AND 6),
    sent            INTEGER NOT NULL,
    received        INTEGER NOT NULL,
    attempts        INTEGER NOT NULL,
    probed_after_us INTEGER NOT NULL,
    address         ANY,
    rtt_avg_ns      INTEGER,
    rtt_min_ns      INTEGER,
    rtt_max_ns      INTEGER,
    rtt_stddev_ns   INTEGER,
    name            TEXT,
    reason          TEXT,
    PRIMARY KEY (run, chunk, position)
) STRICT, WITHOUT ROWID;

-- target: the name in `results`, or else the address in the form that it has there.
-- last_up_us is NULL when the newest row is up or late (then probed_at_us is the last time up), and when it was never up.
-- changed_at_us is NULL when the status has been the same since first_seen_us.
CREATE TABLE latest_rows (
    target        ANY     PRIMARY KEY,
    run           INTEGER NOT NULL,
    chunk         INTEGER NOT NULL,
    position      INTEGER NOT NULL,
    status        INTEGER NOT NULL,
    probed_at_us  INTEGER NOT NULL,
    first_seen_us INTEGER NOT NULL,
    last_up_us    INTEGER,
    changed_at_us INTEGER
) STRICT, WITHOUT ROWID;

-- Messages that could not be applied, with their first bytes.
CREATE TABLE quarantine (
    id             INTEGER PRIMARY KEY,
    received_at_us INTEGER NOT NULL,
    queue          TEXT    NOT NULL,
    reason         TEXT    NOT NULL,
    length         INTEGER NOT NULL,
    body           BLOB    NOT NULL
) STRICT;

-- The writer of each transport: when it was last seen, and how many deliveries had each outcome.
CREATE TABLE writers (
    transport   TEXT    PRIMARY KEY CHECK (transport IN ('sweep', 'broker')),
    seen_us     INTEGER NOT NULL,
    holder      TEXT    NOT NULL,
    taken       INTEGER NOT NULL DEFAULT 0,
    applied     INTEGER NOT NULL DEFAULT 0,
    duplicates  INTEGER NOT NULL DEFAULT 0,
    quarantined INTEGER NOT NULL DEFAULT 0,
    -- For the producers: chunks sent from now on carry publish_round; settled_round is the largest one of a settled chunk.
    publish_round INTEGER NOT NULL DEFAULT 0,
    settled_round INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE TABLE workers (
    instance      BLOB    PRIMARY KEY CHECK (length(instance) = 16),
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
    lost_rp_filter      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE in_hand (
    instance BLOB    NOT NULL,
    run_id   TEXT    NOT NULL,
    chunk    INTEGER NOT NULL,
    taken_at_us INTEGER NOT NULL,
    PRIMARY KEY (instance, run_id, chunk)
) STRICT, WITHOUT ROWID;

CREATE VIEW report AS
SELECT ",
    report_columns!(""),
    r"
FROM results r",
    report_joins!(),
    r";

CREATE VIEW latest AS
SELECT ",
    report_columns!(""),
    ",
       ",
    latest_columns!(),
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
                 AND EXISTS (SELECT 1 FROM workers w CROSS JOIN in_hand h ON h.instance = w.instance
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

// known_status: of a target that is unknown, its last other status; NULL when there was none.
// status_changes: each time that a newer row of a target had another status. What is unknown is no change: the status
// before it counts. Runs that end after a newer one add none. They stay when the rows of their runs are removed.
const V2: &str = concat!(
    r"
ALTER TABLE latest_rows ADD COLUMN known_status INTEGER;

CREATE TABLE status_changes (
    target        ANY     NOT NULL,
    changed_at_us INTEGER NOT NULL,
    old_status    INTEGER NOT NULL,
    new_status    INTEGER NOT NULL,
    PRIMARY KEY (target, changed_at_us)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER record_status_change AFTER UPDATE OF status ON latest_rows
WHEN new.status <> 5 AND coalesce(old.known_status, old.status) NOT IN (5, new.status)
BEGIN
    INSERT INTO status_changes (target, changed_at_us, old_status, new_status)
    VALUES (new.target, new.probed_at_us, coalesce(old.known_status, old.status), new.status);
END;

DROP VIEW latest;
CREATE VIEW latest AS
SELECT ",
    report_columns!(""),
    ",
       ",
    latest_columns!(),
    ",
       ",
    changes_30d!(),
    latest_joins!(),
    ";
"
);

// progress: what `StoredProgress` encodes. A run that an older version began has none.
// publish_window, chunks_in_window: how many chunks may be published and not settled, and how many are, when the lease was
// renewed last; NULL when no producer has the run.
// The indexes are for a page that reads them every few seconds: none of them has a row for each target that is up.
const V4: &str = concat!(
    r"
CREATE TABLE run_progress (
    run      INTEGER PRIMARY KEY,
    progress BLOB    NOT NULL
) STRICT;

ALTER TABLE runs ADD COLUMN publish_window INTEGER;
ALTER TABLE runs ADD COLUMN chunks_in_window INTEGER;

-- heartbeat_us: when the last heartbeat came; last_seen_us may be that of a later result. heartbeat_before_us,
-- requests_before: the heartbeat before it, and requests_sent as of then.
ALTER TABLE workers ADD COLUMN heartbeat_us INTEGER;
ALTER TABLE workers ADD COLUMN heartbeat_before_us INTEGER;
ALTER TABLE workers ADD COLUMN requests_before INTEGER;

CREATE INDEX newest_not_up ON latest_rows (coalesce(changed_at_us, first_seen_us)) WHERE status > 1;
CREATE INDEX quarantine_reasons ON quarantine (queue, reason);
CREATE INDEX dead_chunks ON chunks (run, settled_at_us) WHERE state = ",
    chunk_state!(Dead),
    r" AND retrying = 0;
"
);

// detail: what the reason is about in this message: names, ids and numbers. The reason is the same for every such message.
// An older version had both in one text.
// republished: how many times a chunk was published again after an earlier publish had been confirmed; not by `retry`.
// contradictions: how many of the duplicates are results with another status of a target than the stored one.
const V5: &str = r"
ALTER TABLE quarantine ADD COLUMN detail TEXT NOT NULL DEFAULT '';
UPDATE quarantine SET detail = reason, reason = 'refused by an older version';
ALTER TABLE runs ADD COLUMN republished INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN contradictions INTEGER NOT NULL DEFAULT 0;
";
