'use strict';
// Keeps the page as the server has it: takes the sections that changed, and changes only what differs in them, so that
// the focus, open details, the place in a list, the order of a table and a filter stay as the reader left them.
(function () {
  const kept = new Set(['open', 'hidden', 'aria-sort', 'data-kept']);
  const connection = document.getElementById('connection');
  const spoken = document.getElementById('spoken');
  let version = null;
  let stream = null;
  let heard = Date.now();
  let isEnd = false;

  function morph(old, fresh) {
    if (old.isEqualNode(fresh) || (old.dataset && 'kept' in old.dataset)) { return; }
    if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) { old.replaceWith(fresh); return; }
    if (old.nodeType === Node.TEXT_NODE) { old.data = fresh.data; return; }
    for (const { name } of Array.from(old.attributes)) {
      if (!fresh.hasAttribute(name) && !kept.has(name)) { old.removeAttribute(name); }
    }
    for (const { name, value } of fresh.attributes) {
      if (old.getAttribute(name) !== value && !kept.has(name)) { old.setAttribute(name, value); }
    }
    if (old.nodeName === 'TBODY') { morphRows(old, fresh); return; }
    const now = Array.from(old.childNodes);
    Array.from(fresh.childNodes).forEach(function (child, at) {
      if (at < now.length) { morph(now[at], child); } else { old.append(child); }
    });
    now.slice(fresh.childNodes.length).forEach(function (child) { if (child.parentNode === old) { child.remove(); } });
  }

  // Rows are known by their first cell, and by their number among those with the same one.
  function byKey(rows) {
    const found = new Map();
    for (const row of rows) {
      let key = row.cells[0].textContent;
      while (found.has(key)) { key += '+'; }
      found.set(key, row);
    }
    return found;
  }

  function morphRows(old, fresh) {
    const isSorted = old.parentNode.querySelector('th[aria-sort]');
    const known = byKey(old.rows);
    const wanted = byKey(Array.from(fresh.rows));
    let at = 0;
    for (const [key, row] of wanted) {
      const mine = known.get(key) || row;
      if (mine === row) { old.append(row); } else { morph(mine, row); }
      if (!isSorted && old.rows[at] !== mine) { old.insertBefore(mine, old.rows[at]); }
      known.delete(key);
      at += 1;
    }
    known.forEach(function (row) { row.remove(); });
  }

  function cellKey(row, column) {
    const cell = row.cells[column];
    return cell.dataset.value || cell.textContent;
  }

  function sort(table) {
    const headings = Array.from(table.tHead.rows[0].cells);
    const column = headings.findIndex(function (heading) { return heading.hasAttribute('aria-sort'); });
    if (column === -1) { return; }
    const falls = headings[column].getAttribute('aria-sort') === 'descending';
    const order = new Intl.Collator('en', { numeric: true });
    const rows = Array.from(table.tBodies[0].rows);
    const before = rows.slice();
    rows.sort(function (one, other) {
      const [a, b] = [cellKey(one, column), cellKey(other, column)];
      const difference = Number(a) - Number(b);
      const result = Number.isNaN(difference) ? order.compare(a, b) : difference;
      return falls ? -result : result;
    });
    if (rows.some(function (row, at) { return row !== before[at]; })) { table.tBodies[0].append(...rows); }
  }

  function filter(section) {
    const field = section.querySelector('input.filter');
    if (!field) { return; }
    field.hidden = false;
    const wanted = field.value.toLowerCase();
    for (const row of section.querySelectorAll('tbody tr')) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
    }
  }

  function makeSortable(table) {
    if ('kept' in table.tHead.dataset) { return; }
    table.tHead.dataset.kept = '';
    Array.from(table.tHead.rows[0].cells).forEach(function (heading, column, headings) {
      const button = document.createElement('button');
      button.type = 'button';
      button.textContent = heading.textContent;
      heading.replaceChildren(button);
      button.addEventListener('click', function () {
        const falls = heading.getAttribute('aria-sort') === 'ascending';
        Array.from(table.tHead.rows[0].cells).forEach(function (other) { other.removeAttribute('aria-sort'); });
        heading.setAttribute('aria-sort', falls ? 'descending' : 'ascending');
        sort(table);
      });
    });
  }

  function settle(section) {
    section.querySelectorAll('table.sortable').forEach(function (table) { makeSortable(table); sort(table); });
    filter(section);
    charts.draw(section);
  }

  // For a screen reader: what an alert is about, when that changes; not its ages, which change all the time.
  function speak() {
    const titles = Array.from(document.querySelectorAll('#alerts b'), function (title) { return title.textContent; });
    const text = titles.join('. ');
    if (spoken.textContent !== text) { spoken.textContent = text; }
  }

  function take(event) {
    const news = JSON.parse(event.data);
    if (version && version !== news.version) { location.reload(); return; }
    version = news.version;
    isEnd = news.end;
    heard = Date.now();
    connection.textContent = '';
    document.title = news.title;
    for (const [id, html] of Object.entries(news.parts)) {
      const section = document.getElementById(id);
      if (!section) { continue; }
      const fresh = section.cloneNode(false);
      fresh.innerHTML = html;
      charts.expect(id, fresh);
      morph(section, fresh);
      settle(section);
    }
    speak();
  }

  // An event source does not say why it was refused.
  async function askWhy() {
    const asked = new AbortController();
    try {
      const answer = await fetch('/events', { signal: asked.signal });
      if (answer.status === 503) {
        connection.textContent = 'Too many live pages are open, so this one shows the last numbers: close some of them.';
      }
    } catch (_) {
      // The writer is away, as the page says.
    }
    asked.abort();
  }

  function connect() {
    stream = new EventSource('/events');
    stream.onmessage = take;
    stream.onopen = function () { heard = Date.now(); connection.textContent = ''; };
    stream.onerror = function () {
      if (isEnd) {
        stream.close();
        connection.textContent = 'The sweep has ended. These are its last numbers.';
        return;
      }
      connection.textContent = 'No connection to the writer; trying again. The numbers are the last ones.';
      if (stream.readyState === EventSource.CLOSED) { askWhy(); setTimeout(connect, 5000); }
    };
  }

  document.querySelectorAll('main > section').forEach(settle);
  document.addEventListener('input', function (event) {
    if (event.target.matches('input.filter')) { filter(event.target.closest('section')); }
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', charts.redraw);
  addEventListener('resize', charts.redraw);
  setInterval(function () {
    const isSilent = stream.readyState === EventSource.OPEN && Date.now() - heard > 15000;
    if (isSilent) { connection.textContent = 'No news from the writer for 15 s. The numbers are the last ones.'; }
  }, 5000);
  connect();
})();
