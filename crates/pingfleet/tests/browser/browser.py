"""Drives a real Chromium for the tests of the live page: ADDRESS, then one command in JSON a line on standard input.

Each command is an object with `do`, the name of a method of `Browser`, and its arguments. The answer is one line of JSON:
{"ok": VALUE} or {"error": TEXT}. The tests judge; this only does and reports. Libraries: those that scripts/test installs.
"""

import json
import os
import signal
import socket
import sys
import time
from importlib.resources import files

from playwright.sync_api import Error, sync_playwright

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
]

# Milliseconds that one step may take on a busy machine.
PATIENT = 120_000

# Notes what the content security policy refuses. It runs before the page's own script.
POLICY_WATCH = """
window.refused = [];
document.addEventListener('securitypolicyviolation', function (event) {
  window.refused.push(event.violatedDirective + ' ' + event.blockedURI);
});
"""

# The table of a section, as one picture of the document: each row by its headings, as text and as value.
ROWS = """
function (id) {
  const table = document.querySelector('#' + id + ' table');
  if (!table) { return []; }
  const names = Array.from(table.tHead.rows[0].cells, function (cell) { return cell.textContent; });
  return Array.from(table.tBodies[0].rows, function (row) {
    return Object.fromEntries(Array.from(row.cells, function (cell, at) {
      return [names[at], { text: cell.textContent, value: cell.dataset.value || null }];
    }));
  });
}
"""

# What is wider than the window, unless it scrolls by itself.
TOO_WIDE = """
function () {
  const width = document.documentElement.clientWidth;
  const found = [];
  if (document.documentElement.scrollWidth > width) { found.push('document ' + document.documentElement.scrollWidth); }
  for (const element of document.querySelectorAll('main *')) {
    // A drawing is cut at its own edge.
    if (element.ownerSVGElement) { continue; }
    let around = element.id === 'spoken' ? element : element.parentElement;
    while (around && around.id !== 'spoken' && !['auto', 'scroll'].includes(getComputedStyle(around).overflowX)) {
      around = around.parentElement;
    }
    const right = element.getBoundingClientRect().right;
    if (right > width + 0.5 && !around) {
      found.push(element.tagName + '.' + element.className + ' in #' + (element.closest('section') || {}).id + ' ' + right);
    }
  }
  return found;
}
"""

# Drawings that take no room, in a part that is shown, and a chart over time with another unit than its heading.
UNSEEN = """
function () {
  const drawings = Array.from(document.querySelectorAll('main svg, main canvas'));
  const unseen = drawings.filter(function (drawing) {
    const room = drawing.getBoundingClientRect();
    return drawing.checkVisibility() && (room.width < 2 || room.height < 2);
  });
  const found = unseen.map(function (drawing) {
    return 'no room for ' + (drawing.ariaLabel || drawing.tagName) + ' in #' + (drawing.closest('section') || {}).id;
  });
  const label = document.querySelector('#timeline .u-legend .u-label');
  const heading = document.querySelector('#timeline h2');
  if (label && !heading.textContent.includes(label.textContent + ' since')) {
    found.push(label.textContent + ' are not those of ' + heading.textContent);
  }
  return found;
}
"""

# The longest pause between two turns of a timer of the page, in milliseconds.
LONGEST_PAUSE = """
window.turns = 0;
window.longestPause = 0;
window.lastTurn = Date.now();
setInterval(function () {
  const now = Date.now();
  window.turns += 1;
  window.longestPause = Math.max(window.longestPause, now - window.lastTurn);
  window.lastTurn = now;
}, 50);
"""


def processes_below(parent, name):
    """The processes below one whose program has this in its name."""
    below = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as stat:
                program, rest = stat.read().rsplit(")", 1)
        except (FileNotFoundError, ProcessLookupError):
            continue  # It has ended.
        below.setdefault(int(rest.split()[1]), []).append((int(entry), name in program))
    found, waiting = [], [parent]
    while waiting:
        for process, is_wanted in below.get(waiting.pop(), []):
            waiting.append(process)
            if is_wanted:
                found.append(process)
    return found


def signal_browsers(number):
    """Sends a signal to all processes of the browsers of this program."""
    for process in processes_below(os.getpid(), "chrom"):
        try:
            os.kill(process, number)
        except ProcessLookupError:
            pass  # It has ended.


class Browser:
    def __init__(self, playwright, address):
        self.address = address
        self.chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENT)
        self.tabs = {}
        self.seen = {}
        self.axe = None

    def open(self, tab, path="/", dark=False, width=1280, height=900, script=True, beside=None):
        """Opens a tab, in a profile of its own or in that of another tab."""
        if beside:
            context = self.tabs[beside].context
        else:
            context = self.chromium.new_context(
                color_scheme="dark" if dark else "light", viewport={"width": width, "height": height},
                java_script_enabled=script, locale="en-GB",
            )
            context.set_default_timeout(PATIENT)
            context.add_init_script(POLICY_WATCH)
        page = context.new_page()
        seen = self.seen[tab] = {"requests": [], "failed": [], "console": [], "errors": [], "dialogs": []}
        page.on("request", lambda request: seen["requests"].append(request.url))
        page.on("response", lambda answer: answer.status >= 400 and seen["failed"].append(f"{answer.status} {answer.url}"))
        page.on("console", lambda line: line.type in ("error", "warning") and seen["console"].append(line.text))
        page.on("pageerror", lambda error: seen["errors"].append(str(error)))
        page.on("dialog", lambda dialog: (seen["dialogs"].append(dialog.message), dialog.dismiss()))
        self.tabs[tab] = page
        page.goto(f"http://{self.address}{path}", wait_until="load")

    def close(self, tab):
        self.tabs.pop(tab).close()

    def reload(self, tab):
        self.tabs[tab].reload(wait_until="load")

    def evaluate(self, tab, script, argument=None):
        """The value of a function in the page. A tab without a script loads itself again at any moment: then once more."""
        page = self.tabs[tab]
        for _ in range(20):
            try:
                return page.evaluate(script, argument)
            except Error as error:
                if "Execution context was destroyed" not in str(error):
                    raise
                page.wait_for_load_state("load")
        raise Error(f"{tab} never stops loading")

    def rows(self, tab, section):
        return self.evaluate(tab, ROWS, section)

    def text(self, tab, selector):
        """The text of the first such element; null if there is none."""
        script = "function (selector) { const found = document.querySelector(selector); return found && found.textContent; }"
        return self.evaluate(tab, script, selector)

    def html(self, tab):
        return self.evaluate(tab, "function () { return document.documentElement.outerHTML; }")

    def call(self, tab, script):
        """The value of an expression in the page."""
        return self.tabs[tab].evaluate(script)

    def api(self, tab, path):
        """The answer of the API to the page itself."""
        return self.tabs[tab].evaluate("async function (path) { return await (await fetch(path)).json(); }", path)

    def sleep(self, tab):
        """Stops all processes of the browser, as a machine that goes to sleep does. Until `wake`, no tab can be asked."""
        self.tabs[tab].evaluate(LONGEST_PAUSE)
        signal_browsers(signal.SIGSTOP)
        self.slept_at = time.monotonic()

    def wake(self, tab):
        """Wakes the browser up. Returns how long it was asleep, and the longest pause that the tab itself noticed."""
        slept = time.monotonic() - self.slept_at
        signal_browsers(signal.SIGCONT)
        page = self.tabs[tab]
        # Its timer runs again, so the pause has been measured.
        turns = page.evaluate("window.turns")
        while page.evaluate("window.turns") < turns + 2:
            page.wait_for_timeout(50)
        return {"slept_s": slept, "noticed_s": page.evaluate("window.longestPause") / 1000}

    def offline(self, tab, on):
        """Whether the profile of a tab has no network."""
        self.tabs[tab].context.set_offline(on)

    def crowd(self, streams):
        """Opens this many event streams, each when the one before it is answered. They stay open until `leave`."""
        host, port = self.address.split(":")
        self.streams = []
        for _ in range(streams):
            stream = socket.create_connection((host, int(port)), timeout=PATIENT / 1000)
            head = f"GET /events HTTP/1.1\r\nHost: {self.address}\r\nAccept-Encoding: gzip\r\n\r\n"
            stream.sendall(head.encode())
            stream.recv(1)
            self.streams.append(stream)

    def leave(self):
        """Ends the streams of `crowd`."""
        while self.streams:
            self.streams.pop().close()

    def seen_in(self, tab):
        """What happened in a tab since it was opened."""
        refused = self.evaluate(tab, "window.refused || []")
        return self.seen[tab] | {"refused": refused}

    def violations(self, tab):
        """What axe-core finds, what is wider than the window, and what is drawn without room."""
        if self.axe is None:
            self.axe = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
        page = self.tabs[tab]
        page.evaluate(self.axe)
        found = page.evaluate("async function () { return (await axe.run()).violations; }")
        lines = [
            f"{rule['id']}: {' '.join(map(str, node['target']))}: {node['failureSummary']}"
            for rule in found for node in rule["nodes"]
        ]
        return {"axe": lines, "wide": page.evaluate(TOO_WIDE), "unseen": page.evaluate(UNSEEN)}

    def picture(self, tab, path, whole=True, selector=None):
        """Writes a PNG of the page, or of an element."""
        page = self.tabs[tab]
        if selector:
            page.locator(selector).first.screenshot(path=path)
        else:
            page.screenshot(path=path, full_page=whole)


def main():
    with sync_playwright() as playwright:
        browser = Browser(playwright, sys.argv[1])
        print(json.dumps({"ok": browser.chromium.version}), flush=True)
        for line in sys.stdin:
            command = json.loads(line)
            try:
                answer = {"ok": getattr(browser, command.pop("do"))(**command)}
            except Error as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)
        # A test that failed may have left it asleep.
        signal_browsers(signal.SIGCONT)
        browser.chromium.close()


main()
