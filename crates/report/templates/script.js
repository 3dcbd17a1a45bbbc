'use strict';
// Sorts tables by a click on a heading, and searches the long one. Without it they are plain tables.
// The text has no less-than sign and no ampersand, so that the page is well-formed XML as well.
document.querySelectorAll('table.sortable').forEach(function (table) {
  var body = table.tBodies[0];
  var headings = Array.from(table.tHead.rows[0].cells);
  headings.forEach(function (heading, column) {
    var button = document.createElement('button');
    button.type = 'button';
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener('click', function () {
      var falls = heading.getAttribute('aria-sort') === 'ascending';
      headings.forEach(function (other) { other.removeAttribute('aria-sort'); });
      heading.setAttribute('aria-sort', falls ? 'descending' : 'ascending');
      var rows = Array.from(body.rows).map(function (row) {
        var cell = row.cells[column];
        return { row: row, key: cell.dataset.value || cell.textContent };
      });
      var order = new Intl.Collator('en', { numeric: true });
      rows.sort(function (one, other) {
        var difference = Number(one.key) - Number(other.key);
        var result = Number.isNaN(difference) ? order.compare(one.key, other.key) : difference;
        return falls ? -result : result;
      });
      rows.forEach(function (item) { body.appendChild(item.row); });
    });
  });
});
document.querySelectorAll('table.searchable').forEach(function (table) {
  var label = document.createElement('label');
  var field = document.createElement('input');
  var count = document.createElement('span');
  label.className = 'search';
  field.type = 'search';
  field.placeholder = 'search';
  field.setAttribute('aria-label', 'Search in this table');
  count.setAttribute('aria-live', 'polite');
  label.append(field, count);
  table.parentElement.before(label);
  field.addEventListener('input', function () {
    var wanted = field.value.toLowerCase();
    var found = 0;
    Array.from(table.tBodies[0].rows).forEach(function (row) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
      if (!row.hidden) { found += 1; }
    });
    count.textContent = wanted ? found + ' found' : '';
  });
});
