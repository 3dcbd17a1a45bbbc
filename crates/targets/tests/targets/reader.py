"""Reads files of targets by Python's csv module: the independent reader of independent.rs.

Prints one JSON object for each file of a folder, in the order of their names: what became of every line, and the words
that are targets; or null, if the file as a whole is refused.
"""

import csv
import io
import ipaddress
import json
import pathlib
import re
import sys

# White space as Unicode has it. str.strip() takes U+001C to U+001F as well.
BLANK = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
NAME = re.compile(r"(?=.{1,253}$)([A-Za-z0-9_][A-Za-z0-9_-]{0,62}\.)*[A-Za-z0-9_][A-Za-z0-9_-]{0,62}\.?", re.ASCII)
LONGEST = 4096
COLUMNS = 256


def identity(word):
    """What two mentions of one target have in common; None of what is no target."""
    try:
        return str(ipaddress.ip_address(word))
    except ValueError:
        pass
    if not NAME.fullmatch(word) or word.rstrip(".").split(".")[-1].isdigit():
        return None
    return word.lower()


def length(text):
    return len(text.encode("utf-8", "surrogateescape"))


def without_end(text):
    return re.sub(r"(\r\n|\r|\n)\Z", "", text)


class File:
    def __init__(self, path):
        data = path.read_bytes()
        self.utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        if self.utf16:
            # encoding_rs removes a second byte order mark, too.
            text = data.decode("utf-16", "replace").removeprefix("\ufeff")
        else:
            text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
        self.lines = list(io.StringIO(text, newline=""))
        self.next = 0
        self.is_csv = path.suffix == ".csv"
        self.counts = dict.fromkeys(
            ["targets", "duplicates", "comments", "blank", "header", "continued", "bad"], 0
        )
        self.words = []
        self.seen = set()

    def is_text(self, text):
        damaged = any("\udc80" <= c <= "\udcff" for c in text)
        return not damaged and not (self.utf16 and "\ufffd" in text)

    def content(self):
        """Goes to the next line that is neither blank nor a comment."""
        while self.next < len(self.lines):
            line = without_end(self.lines[self.next])
            if line.lstrip(BLANK).startswith("#"):
                self.counts["comments"] += 1
            elif not line.strip(BLANK) and length(line) <= LONGEST:
                self.counts["blank"] += 1
            else:
                return line
            self.next += 1
        return None

    def take(self, word, lines=1):
        key = identity(word)
        if key is None:
            self.counts["bad"] += lines
            return
        self.counts["continued"] += lines - 1
        self.counts["duplicates" if key in self.seen else "targets"] += 1
        if key not in self.seen:
            self.seen.add(key)
            self.words.append(word)

    def list(self):
        while (line := self.content()) is not None:
            self.next += 1
            word = re.split(f"(?:^|(?<=[{BLANK}]))#", line.strip(BLANK))[0].strip(BLANK)
            if length(line) > LONGEST or not self.is_text(line):
                self.counts["bad"] += 1
            else:
                self.take(word)

    def row(self, separator):
        """The next row: how many lines it has, and its cells, if it is a good row."""
        begin = self.next

        def following():
            while self.next < len(self.lines):
                self.next += 1
                yield self.lines[self.next - 1]

        cells = next(csv.reader(following(), delimiter=separator))
        lines = self.lines[begin : self.next]
        try:
            list(csv.reader(lines, delimiter=separator, strict=True))
        except csv.Error:
            return len(lines), None
        if length(without_end("".join(lines))) > LONGEST or len(cells) > COLUMNS:
            return len(lines), None
        if not all(map(self.is_text, cells)):
            return len(lines), None
        return len(lines), [cell.strip(BLANK) for cell in cells]

    def table(self):
        line = self.content()
        separator = None
        if line is not None and (named := re.match('"?sep=', line, re.I)):
            separator = line[named.end() :].rstrip('"') if line[0] == '"' else line[named.end() :]
            if len(separator) != 1 or separator.isalnum():
                return False
            self.counts["header"] += 1
            self.next += 1
            line = self.content()
        if line is None:
            return False
        separator = separator or separator_of(line) or ","
        lines, names = self.row(separator)
        columns = [name.lower() for name in names or [] if name.lower() == "target"]
        labels = [name for name in names or [] if name and name.lower() != "target"]
        if len(columns) != 1 or len(set(labels)) < len(labels):
            return False
        target = [name.lower() for name in names].index("target")
        self.counts["header"] += lines
        while self.content() is not None:
            lines, cells = self.row(separator)
            if cells is not None and not any(cells):
                self.counts["blank"] += lines
            elif (
                cells is None
                or len(cells) != len(names)
                or any(cell and not name for name, cell in zip(names, cells))
            ):
                self.counts["bad"] += lines
            else:
                self.take(cells[target], lines)
        return True

    def read(self):
        line = self.content()
        if not self.is_csv and line is not None:
            is_header = line.lower() != "target" and separator_of(line)
            self.is_csv = bool(re.match('"?sep=', line, re.I) or is_header)
        if self.is_csv:
            if not self.table():
                return None
        else:
            self.list()
        return {"read": len(self.lines), **self.counts, "words": self.words}


def separator_of(line):
    for separator in ",;\t":
        cells = next(csv.reader([line], delimiter=separator), [])
        if any(cell.strip(BLANK).lower() == "target" for cell in cells):
            return separator
    return None


csv.field_size_limit(1 << 24)
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    print(json.dumps(File(path).read()))
