"""Compares exported files with the view `report`, as other programs read them: DATABASE RUN FILE...

Ends with 1 and one line if a value differs. The tests run it with the libraries that scripts/test installs.
"""

import json
import sqlite3
import sys
from datetime import datetime, timezone

NUMBERS = {
    "run", "sent", "received", "loss_pct", "rtt_min_ms", "rtt_avg_ms", "rtt_max_ms", "rtt_stddev_ms", "attempts",
}


def expected(database, run):
    """The rows of the view, by target."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    rows = connection.execute("SELECT * FROM report WHERE run = ?", [run])
    return {row["target"]: dict(row) for row in rows}


def parsed(row):
    """A row whose labels are an object."""
    return row | {"labels": row["labels"] and json.loads(row["labels"])}


def json_lines(file):
    with open(file, encoding="utf-8", newline="\n") as lines:
        yield from map(json.loads, lines)


def csv(file):
    import pandas

    table = pandas.read_csv(file, dtype=str, keep_default_na=False)
    for row in table.to_dict("records"):
        row = {key: value if value != "" else None for key, value in row.items()}
        yield parsed({key: float(value) if value and key in NUMBERS else value for key, value in row.items()})


def typed(row):
    """A row of Parquet with the types of the view."""
    for key in NUMBERS:
        row[key] = row[key] if row[key] is None else float(row[key])
    if isinstance(row["labels"], bytes):
        row["labels"] = row["labels"].decode()
    at = row["probed_at"]
    if at is not None:
        row["probed_at"] = at.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        assert at.microsecond % 1000 == 0, at
    return parsed(row)


def parquet_by_pyarrow(file):
    import pyarrow
    import pyarrow.parquet

    footer = pyarrow.parquet.read_metadata(file).metadata
    assert footer[b"pingfleet.format_version"] == b"1", footer
    about = json.loads(footer[b"pingfleet.metadata"])
    assert about["state"] and {"probing", "seed"} <= about.keys(), footer
    table = pyarrow.parquet.read_table(file)
    types = {field.name: field.type for field in table.schema}
    assert types["probed_at"] == pyarrow.timestamp("us", tz="UTC"), types
    assert types["rtt_avg_ms"] == pyarrow.decimal128(18, 6), types
    yield from map(typed, table.to_pylist())


def parquet_by_duckdb(file):
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    # DuckDB gives instants to Python by a library that is not needed otherwise.
    result = connection.execute(
        "SELECT * REPLACE (probed_at AT TIME ZONE 'UTC' AS probed_at) FROM read_parquet(?)", [file]
    )
    names = [column[0] for column in result.description]
    for row in result.fetchall():
        row = dict(zip(names, row))
        if isinstance(row["probed_at"], datetime):
            row["probed_at"] = row["probed_at"].replace(tzinfo=timezone.utc)
        yield typed(row)


READERS = {"jsonl": [json_lines], "csv": [csv], "parquet": [parquet_by_pyarrow, parquet_by_duckdb]}


def main():
    database, run, *files = sys.argv[1:]
    for file in files:
        for read in READERS[file.rsplit(".", 1)[1]]:
            wanted = {target: parsed(row) for target, row in expected(database, run).items()}
            found = list(read(file))
            columns = list(next(iter(wanted.values())))
            for row in found:
                if list(row) != columns:
                    sys.exit(f"{read.__name__}: columns {list(row)}")
                if wanted.pop(row["target"], None) != row:
                    sys.exit(f"{read.__name__}: another row: {row}")
            if wanted:
                sys.exit(f"{read.__name__}: {len(wanted)} rows are missing")
            print(f"{read.__name__} {len(found)}")


main()
