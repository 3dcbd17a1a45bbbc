"""Runs every query of docs/queries.md in the folder with the files that it names: DOCUMENT.

Ends with 1 and one line when an answer is not the one of the document. With UPDATE_SNAPSHOTS the answers of the first
query of each question are written into the document instead. The tests run it with the libraries that scripts/test
installs.
"""

import json
import os
import re
import sqlite3
import sys
from decimal import Decimal

import duckdb
import numpy
import pandas

BLOCK = re.compile(r"^```(sql sqlite|sql duckdb|python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shown(value):
    if value is None or value is pandas.NaT or (isinstance(value, float) and numpy.isnan(value)):
        return "NULL"
    if isinstance(value, (float, Decimal, numpy.floating)):
        return f"{float(value):g}"
    return str(value)


def lines(rows):
    return "".join(" | ".join(map(shown, row)) + "\n" for row in rows)


def sqlite(query):
    connection = sqlite3.connect("file:pingfleet.db?mode=ro", uri=True)
    return connection.execute(query).fetchall()


def by_duckdb(query):
    return duckdb.sql(query).fetchall()


def by_pandas(query):
    names = {"json": json, "sqlite3": sqlite3, "numpy": numpy, "pandas": pandas}
    exec(query, names)
    return names["answer"].astype(object).values.tolist()


RUNNERS = {"sql sqlite": sqlite, "sql duckdb": by_duckdb, "python": by_pandas}


def main():
    document = open(sys.argv[1], encoding="utf-8").read()
    head, *questions = re.split(r"^(?=## )", document, flags=re.MULTILINE)
    written = [head]
    queries = 0
    for question in questions:
        title = question.splitlines()[0]
        blocks = BLOCK.findall(question)
        expected = blocks[-1][1]
        if blocks[-1][0] != "text" or len(blocks) < 2:
            sys.exit(f"{title}: no query or no answer")
        if "UPDATE_SNAPSHOTS" in os.environ:
            expected = lines(RUNNERS[blocks[0][0]](blocks[0][1]))
            question = question.replace(f"```text\n{blocks[-1][1]}```", f"```text\n{expected}```")
        written.append(question)
        for kind, query in blocks[:-1]:
            found = lines(RUNNERS[kind](query))
            if found != expected or not found:
                sys.exit(f"{title}, {kind}:\n{found}instead of\n{expected}")
            queries += 1
    if "UPDATE_SNAPSHOTS" in os.environ:
        open(sys.argv[1], "w", encoding="utf-8").write("".join(written))
    print(f"{len(questions)} questions, {queries} queries")


main()
