"""Checks that archives and databases hold every row exactly once: BEFORE FOLDER...

BEFORE is the database before anything was removed. Each FOLDER has a database pingfleet.db and an archive. Ends with 1
and one line if a row is missing, is there twice, or differs. The tests run it with the libraries that scripts/test
installs.
"""

import json
import sqlite3
import sys
from collections import Counter
from glob import glob

import duckdb
import pandas

COLUMNS = [
    "run", "run_id", "target", "address", "status", "reason", "sent", "received", "loss_pct", "rtt_min_ms", "rtt_avg_ms",
    "rtt_max_ms", "rtt_stddev_ms", "attempts", "worker", "probed_at", "labels",
]
DECIMALS = [f"rtt_{name}_ms" for name in ("min", "avg", "max", "stddev")]


def stored(database):
    """The rows of the view, and those of `latest`."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    report = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM report").fetchall()
    latest = connection.execute("SELECT * FROM latest ORDER BY target").fetchall()
    runs = connection.execute("SELECT * FROM run_summary ORDER BY run").fetchall()
    return [typed(row) for row in report], latest, runs


def typed(row):
    """A row whose values can be compared, whatever library read it."""
    values = dict(zip(COLUMNS, row))
    for name in DECIMALS:
        values[name] = values[name] if values[name] is None else float(values[name])
    if isinstance(values["labels"], bytes):
        values["labels"] = values["labels"].decode()
    values["labels"] = values["labels"] and json.dumps(json.loads(values["labels"]))
    return tuple(values.values())


def archived(folder):
    """All rows of the archive, as DuckDB reads the folder as one table."""
    files = f"{folder}/archive/*.parquet"
    if not glob(files):
        return []
    select = ", ".join(COLUMNS).replace(
        "probed_at", "strftime(probed_at AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%S.%g') || 'Z'"
    )
    rows = duckdb.sql(f"SELECT {select} FROM read_parquet('{files}')").fetchall()
    table = pandas.read_parquet(f"{folder}/archive")
    by_pandas = Counter(zip(table["run"].astype(int), table["target"]))
    if by_pandas != Counter((row[0], row[2]) for row in rows):
        sys.exit(f"{folder}: DuckDB and pandas read other rows")
    return [typed(row) for row in rows]


def main():
    before, latest_before, runs_before = stored(sys.argv[1])
    expected = Counter(before)
    for folder in sys.argv[2:]:
        rows, latest, runs = stored(f"{folder}/pingfleet.db")
        files = archived(folder)
        # Rows of an archived run that are still in the database are those that `latest` shows.
        whole = {row[0] for row in files}
        kept = [row for row in rows if row[0] in whole]
        shown = {(row[0], row[2]) for row in latest}
        if any((row[0], row[2]) not in shown for row in kept):
            sys.exit(f"{folder}: a row is in the archive and in the database, and `latest` does not show it")
        found = Counter(files) + Counter(row for row in rows if row[0] not in whole)
        missing, more = expected - found, found - expected
        if missing or more:
            sys.exit(f"{folder}: {missing.total()} rows are missing, {more.total()} are there twice or differ")
        if latest != latest_before:
            sys.exit(f"{folder}: another `latest`")
        if runs != runs_before:
            sys.exit(f"{folder}: another `run_summary`")
        print(f"{folder}: {len(files)} rows archived, {len(rows)} in the database")


main()
