'use strict';
// The charts over time: they show the numbers of the table beside them. It is sent in one file with live.js, before it.
const charts = (function () {
  const plots = {};
  const shapes = {
    timeline: function (row) { return [row[0] + row[1] / 2, row[2] / row[1], row[3] / row[1]]; },
    rates: function (row) { return row.map(function (value, at) { return at > 0 && value === -1 ? null : value; }); },
  };

  const units = { seconds: 1, minutes: 60, hours: 3600, days: 86400 };

  // The unit of the horizontal axis, as the heading says it. The table has seconds.
  function unitOf(section) {
    const found = /(seconds|minutes|hours|days) since/.exec(section.querySelector('h2').textContent);
    return found ? found[1] : 'seconds';
  }

  // Without the plot, the holder takes what the server draws.
  function drop(id) {
    if (!plots[id]) { return; }
    const holder = plots[id].root.parentNode;
    if (holder) { delete holder.dataset.kept; }
    plots[id].destroy();
    delete plots[id];
  }

  function pointsOf(id, section) {
    const table = section.querySelector('details table');
    return Array.from(table ? table.tBodies[0].rows : [], function (row) {
      return shapes[id](Array.from(row.cells, function (cell) { return Number(cell.dataset.value); }));
    });
  }

  // The legend has the numbers under the pointer; without one, the last ones.
  function showLast(plot) {
    if (typeof plot.cursor.idx !== 'number') { plot.setLegend({ idx: plot.data[0].length - 1 }); }
  }

  function value(_, number) {
    return typeof number === 'number' ? String(Number(number.toPrecision(3))) : '–';
  }

  function draw(section) {
    const id = section.id;
    if (!shapes[id]) { return; }
    const holder = section.querySelector('.plot');
    const table = section.querySelector('details table');
    const points = pointsOf(id, section);
    if (!holder || points.length < 2 || !window.uPlot) { drop(id); return; }
    const data = points[0].map(function (_, column) { return points.map(function (point) { return point[column]; }); });
    const unit = unitOf(section);
    data[0] = data[0].map(function (seconds) { return seconds / units[unit]; });
    const colours = getComputedStyle(document.documentElement);
    const colour = function (name) { return colours.getPropertyValue('--' + name).trim(); };
    const names = id === 'timeline' ? ['answered/s', 'not up/s']
      : Array.from(table.tHead.rows[0].cells).slice(1).map(function (cell) { return cell.textContent; });
    const width = Math.max(holder.clientWidth, 280);
    const isNew = !plots[id] || plots[id].root.parentNode !== holder || plots[id].series.length !== data.length
      || plots[id].series[0].label !== unit;
    if (isNew) {
      drop(id);
      holder.replaceChildren();
      holder.dataset.kept = '';
      const axis = { stroke: colour('dim'), grid: { stroke: colour('line'), width: 1 }, ticks: { show: false } };
      plots[id] = new window.uPlot({
        width: width, height: 200, cursor: { drag: { setScale: false } },
        scales: { x: { time: false }, y: { range: function (_, min, max) { return [0, (max || 1) * 1.1]; } } },
        axes: [Object.assign({ size: 30 }, axis), Object.assign({ size: 60 }, axis)],
        series: [{ label: unit, value: value }].concat(names.map(function (name, at) {
          return at === 0 ? { label: name, value: value, stroke: colour('accent'), width: 2, fill: colour('accent') + '22' }
            : { label: name, value: value, stroke: colour(id === 'timeline' ? 'down' : 'dim'), width: 1.5, dash: [6, 4] };
        })),
        hooks: { ready: [showLast], setCursor: [showLast], setData: [showLast] },
        bands: names.length === 3 ? [{ series: [3, 2], fill: colour('accent') + '22' }] : [],
      }, data, holder);
    } else {
      plots[id].setSize({ width: width, height: 200 });
      plots[id].setData(data);
    }
  }

  // Before a section changes: with too few points, what the server draws takes the place of the plot.
  function expect(id, fresh) {
    if (shapes[id] && pointsOf(id, fresh).length < 2) { drop(id); }
  }

  function redraw() {
    Object.keys(plots).forEach(function (id) { drop(id); draw(document.getElementById(id)); });
  }

  return { draw: draw, expect: expect, redraw: redraw };
})();
