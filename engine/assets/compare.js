'use strict';
// Everything of the user's goes in as text, never as HTML.
(() => {
  const read = id => JSON.parse(document.getElementById(id).textContent);
  const report = read('report'), strips = read('strips');
  const cells = report.cells;
  const one = (selector, from = document) => from.querySelector(selector);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const distinct = values => [...new Set(values)];
  const solvers = distinct(cells.map(cell => cell.solver));
  const nfes = distinct(cells.map(cell => cell.nfe)).sort((a, b) => a - b);
  const distanceName = report.frechet ? report.frechet.name : 'Fréchet distance';
  const state = {setting: 'common', nfe: startNfe(), view: 'pictures', only: 'all'};

  function startNfe() {  // The one that the page recommends.
    const chosen = Number(one('#answer [data-nfe]')?.dataset.nfe);
    return nfes.includes(chosen) ? chosen : nfes[0];
  }

  function el(tag, properties = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in node) node[name] = value;
      else node.setAttribute(name, value);
    }
    node.append(...children.filter(child => child != null));
    return node;
  }

  function number(value) {  // The same rule as in page.py.
    if (value == null) return '–';
    const size = Math.abs(value);
    if (size >= 100) return Math.round(value).toLocaleString('en-US');
    if (size !== 0 && size < 1e-4) return value.toExponential(1);
    return String(Number(value.toPrecision(3)));
  }
  const interval = bounds => bounds ? `[${number(bounds[0])}, ${number(bounds[1])}]` : '';
  const plain = value => Array.isArray(value) ? `[${value.map(plain).join(', ')}]`
    : value === true ? 'True' : value === false ? 'False' : String(value);
  const listed = options => Object.entries(options || {}).filter(([key]) => key !== 'name')
    .map(([key, value]) => `${key}=${plain(value)}`).join(' ');
  const where = cell => [listed(cell.options), schedule(cell)].filter(Boolean).join(' · ');
  const schedule = cell => [cell.schedule.name, listed(cell.schedule)].filter(Boolean).join(' ');

  function copyButton(text) {
    return el('button', {type: 'button', className: 'quiet copy', textContent: 'Copy',
                         'data-text': text});
  }
  document.addEventListener('click', async event => {
    const button = event.target.closest('.copy');
    if (!button) return;
    const text = button.dataset.text;
    let done = false;
    try {
      await navigator.clipboard.writeText(text);
      done = true;
    } catch {  // A browser may keep the clipboard from pages that are files.
      const area = el('textarea', {value: text});
      document.body.append(area);
      area.select();
      done = document.execCommand('copy');
      area.remove();
    }
    button.textContent = done ? 'Copied' : 'Select and copy by hand';
    setTimeout(() => { button.textContent = 'Copy'; }, 1600);
  });

  // Switches: each shows one field of the state, and some fields have two switches.
  const choices = {
    setting: [['common', 'Common setting'], ['best', 'Best setting of each']],
    nfe: nfes.map(nfe => [nfe, String(nfe)]),
    view: [['pictures', 'Pictures'], ['difference', 'Difference ×4']],
    only: [['all', 'All'], ['common', 'Common only'], ['best', 'Best only']],
  };
  for (const group of all('.switch')) {
    const field = group.dataset.state;
    if (field === 'nfe') group.append(el('i', {textContent: 'NFE'}));
    for (const [value, label] of choices[field]) {
      const button = el('button', {type: 'button', textContent: label, 'data-value': value});
      button.addEventListener('click', () => { state[field] = value; update(); });
      group.append(button);
    }
  }
  function update() {
    for (const button of all('.switch button')) {
      const field = button.parentElement.dataset.state;
      button.setAttribute('aria-pressed', String(state[field]) === button.dataset.value);
    }
    for (const figure of all('figure[data-setting]')) {
      figure.hidden = figure.dataset.setting !== state.setting;
    }
    drawWall();
    drawRows();
  }

  // Plots: a solver stands out when its name or one of its points is under the pointer.
  const figures = one('.figures');
  const points = [];
  let pinned = null;
  for (const [metric, field] of [['error', 'rms'], ['distance', 'frechet']]) {
    for (const setting of ['common', 'best']) {
      for (const solver of solvers) {
        const line = document.getElementById(`${metric}-${setting}-${solver}`);
        if (!line) continue;
        const bars = document.getElementById(`${line.id}-bars`);
        for (const group of [line, bars]) {
          group?.classList.add('line');
          if (group) group.dataset.solver = solver;
        }
        const shown = cells.filter(cell => cell.solver === solver && cell[setting] && cell[field])
          .sort((a, b) => a.nfe - b.nfe);
        const marks = all('use', line);
        if (marks.length === shown.length) {
          const figure = line.closest('figure');
          marks.forEach((mark, i) => points.push({mark, cell: shown[i], figure}));
        }
      }
    }
  }
  function focus(solver) {
    figures.classList.toggle('focus', solver != null);
    for (const line of all('svg .line')) {
      line.classList.toggle('on', line.dataset.solver === solver);
    }
  }
  for (const button of all('.legend button')) {
    const solver = button.dataset.solver;
    button.addEventListener('pointerenter', () => focus(solver));
    button.addEventListener('pointerleave', () => focus(pinned));
    button.addEventListener('click', () => {
      pinned = pinned === solver ? null : solver;
      for (const other of all('.legend button')) {
        other.setAttribute('aria-pressed', other.dataset.solver === pinned);
      }
      focus(pinned);
    });
  }
  const tip = one('#tip');
  function describe(cell) {
    return [`${cell.solver} ${listed(cell.options)}`.trim(), schedule(cell), `NFE ${cell.nfe}`,
      cell.rms == null ? '' : `RMS ${number(cell.rms)} ${interval(cell.rms_interval)}`,
      cell.frechet == null ? ''
        : `${distanceName} ${number(cell.frechet)} ${interval(cell.frechet_interval)}`,
    ].filter(Boolean).join('\n');
  }
  figures.addEventListener('pointermove', event => {
    const figure = event.target.closest('figure');
    let nearest = null, distance = 22;  // Pixels.
    for (const point of points) {
      if (point.figure !== figure || (pinned && point.cell.solver !== pinned)) continue;
      const box = point.mark.getBoundingClientRect();
      const gap = Math.hypot(event.clientX - box.x - box.width / 2,
                             event.clientY - box.y - box.height / 2);
      if (gap < distance) [nearest, distance] = [point, gap];
    }
    tip.hidden = !nearest;
    focus(nearest ? nearest.cell.solver : pinned);
    if (!nearest) return;
    tip.textContent = describe(nearest.cell);
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(8, left)}px`;
    const top = event.clientY + 16, fits = top + tip.offsetHeight < innerHeight;
    tip.style.top = `${fits ? top : event.clientY - tip.offsetHeight - 12}px`;
  });
  figures.addEventListener('pointerleave', () => { tip.hidden = true; focus(pinned); });

  // Wall
  const wall = one('#wall'), rows = one('.rows', wall);
  const [height, width] = report.model.image_shape;
  const count = report.shown_seeds.length;
  const look = document.body.style;
  // Small pictures fill the row, pixel by pixel; large ones are never blown up.
  document.body.classList.toggle('small', width <= 48);
  look.setProperty('--widest', width <= 48 ? '1fr' : `${width}px`);
  look.setProperty('--across', Math.min(count, 16));
  look.setProperty('--across-narrow', Math.ceil(Math.min(count, 16) / 2));
  const reference = strips[report.reference.strip];

  function pictures(source, className) {  // One box per seed, which shows its part of the strip.
    const box = el('div', {className});
    box.style.setProperty('--strip', `url(${source})`);
    report.shown_seeds.forEach((seed, i) => {
      const picture = el('i', {title: `Seed ${seed}`});
      picture.style.aspectRatio = `${width} / ${height}`;
      picture.style.backgroundSize = `${100 * count}% 100%`;
      picture.style.backgroundPosition = `${count > 1 ? 100 * i / (count - 1) : 0}% 0`;
      box.append(picture);
    });
    return box;
  }
  function strip(id, name, isReference = false) {
    const box = el('div', {className: isReference ? 'strip plain' : 'strip', role: 'img',
                           'aria-label': `Samples of ${name}, one per seed`});
    box.append(pictures(strips[id], 'pictures'));
    if (!isReference && reference) {
      box.append(pictures(reference, 'pictures over'));
      box.addEventListener('pointerdown', () => box.classList.add('held'));
      for (const end of ['pointerup', 'pointerleave', 'pointercancel']) {
        box.addEventListener(end, () => box.classList.remove('held'));
      }
    }
    return box;
  }
  function numbers(cell) {
    const node = el('div', {className: 'numbers'});
    if (cell.rms != null) node.append('RMS ', el('b', {textContent: number(cell.rms)}));
    if (cell.frechet != null) {
      node.append(cell.rms == null ? '' : ' · ', `${distanceName} `,
                  el('b', {textContent: number(cell.frechet)}));
    }
    return node;
  }
  function drawWall() {
    rows.classList.toggle('difference', state.view === 'difference');
    rows.replaceChildren();
    const error = report.reference.error;
    if (reference) {
      const seeds = el('div', {className: 'pictures seeds', 'aria-hidden': true,
                               hidden: count > 16});
      seeds.append(...report.shown_seeds.map(seed => el('span', {textContent: seed})));
      rows.append(el('div', {className: 'row reference'},
        el('div', {className: 'label'}, el('div', {className: 'name'}, 'Reference',
          el('small', {textContent: `NFE ${report.reference.nfe}`})),
          el('div', {className: 'numbers',
                     textContent: error == null ? '' : `error ${number(error)}`})),
        el('div', {}, seeds, strip(report.reference.strip, 'the reference solution', true))));
    }
    const last = value => value == null ? Infinity : value;
    const shown = cells.filter(cell => cell[state.setting] && cell.nfe === state.nfe)
      .sort((a, b) => last(a.rms) - last(b.rms) || last(a.frechet) - last(b.frechet) || 0);
    for (const cell of shown) {
      const row = el('div', {className: 'row', 'data-id': cell.id},
        el('div', {className: 'label', title: describe(cell)},
          el('div', {className: 'name'}, cell.solver,
          el('small', {textContent: where(cell)})), numbers(cell)));
      row.append(strips[cell.strip] ? strip(cell.strip, cell.solver)
        : el('p', {className: 'missing', textContent: 'No pictures of this cell.'}));
      rows.append(row);
    }
    const missing = solvers.filter(solver => !shown.some(cell => cell.solver === solver));
    if (missing.length) {
      rows.append(el('p', {className: 'missing', textContent:
        `No cell at NFE ${state.nfe}: ${missing.join(', ')}.`}));
    }
  }

  // Table
  const columns = [
    {key: 'solver', label: 'Solver', text: cell => `${cell.solver} ${listed(cell.options)}`},
    {key: 'schedule', label: 'Schedule', text: schedule},
    {key: 'setting', label: 'Setting', text: cell =>
      `${cell.common ? 'common' : ''} ${cell.best ? 'best' : ''}`.trim()},
    {key: 'nfe', label: 'NFE'},
    {key: 'rms', label: 'RMS to reference', meter: true},
    {key: 'frechet', label: distanceName, meter: true},
    {key: 'images_per_second', label: 'Images/s'},
    {key: 'num_steps', label: 'Steps'},
    {key: 'network_seconds', label: 'Network, s'},
  ].filter(column => column.key !== 'frechet' || report.frechet);
  for (const column of columns.filter(column => column.meter)) {
    const logs = cells.map(cell => cell[column.key]).filter(value => value > 0).map(Math.log);
    column.low = Math.min(...logs);
    column.high = Math.max(...logs);
  }
  const sorting = {key: null, down: false};
  const open = new Set();
  const form = one('#cells form'), head = one('#cells thead tr'), body = one('#cells tbody');
  form.addEventListener('submit', event => event.preventDefault());
  const option = (value, label) => el('option', {value, textContent: label});
  form.solver.append(option('', 'All solvers'), ...solvers.map(name => option(name, name)));
  form.nfe.append(option('', 'All NFE'), ...nfes.map(nfe => option(nfe, `NFE ${nfe}`)));
  form.addEventListener('input', drawRows);
  for (const column of columns) {
    const button = el('button', {type: 'button', textContent: column.label});
    button.addEventListener('click', () => {
      sorting.down = sorting.key === column.key && !sorting.down;
      sorting.key = column.key;
      for (const heading of head.children) heading.removeAttribute('aria-sort');
      button.parentElement.setAttribute('aria-sort', sorting.down ? 'descending' : 'ascending');
      sortCells(column);
      drawRows();
    });
    head.append(el('th', {scope: 'col', className: column.text ? '' : 'number',
                          'data-key': column.key}, button));
  }
  const order = cells.slice().sort((a, b) => a.nfe - b.nfe);  // Stable, so ties keep their order.
  function sortCells({key, text}) {
    const sign = sorting.down ? -1 : 1;
    order.sort((a, b) => {
      if (text) return sign * text(a).localeCompare(text(b), 'en', {numeric: true});
      if (a[key] == null || b[key] == null) return (a[key] == null) - (b[key] == null);  // Last.
      return sign * (a[key] - b[key]);
    });
  }
  function passes(cell) {
    const words = form.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = `${cell.solver} ${where(cell)} nfe=${cell.nfe}`.toLowerCase();
    return words.every(word => text.includes(word))
      && (!form.solver.value || cell.solver === form.solver.value)
      && (!form.nfe.value || cell.nfe === Number(form.nfe.value))
      && (state.only === 'all' || cell[state.only]);
  }
  function drawRows() {
    const shown = order.filter(passes);
    body.replaceChildren(...shown.flatMap(cell =>
      open.has(cell.id) ? [row(cell), detail(cell)] : [row(cell)]));
    if (!shown.length) {
      body.append(el('tr', {}, el('td', {colSpan: columns.length, className: 'soft',
                                         textContent: 'No cell passes the filter.'})));
    }
    one('.count').textContent = shown.length === cells.length ? `${cells.length} cells`
      : `${shown.length} of ${cells.length} cells`;
    one('.count').className = 'count soft';
  }
  function row(cell) {
    const line = el('tr', {className: 'cell', 'data-id': cell.id});
    for (const column of columns) line.append(entry(cell, column));
    line.addEventListener('click', () => {
      if (getSelection().toString()) return;  // Whoever marks a number does not open the row.
      if (open.delete(cell.id)) line.nextSibling.remove();
      else { open.add(cell.id); line.after(detail(cell)); }
      one('.open', line).setAttribute('aria-expanded', open.has(cell.id));
    });
    return line;
  }
  function entry(cell, {key, text, meter, low, high}) {
    if (key === 'solver') {
      return el('td', {}, el('button', {type: 'button', className: 'open', textContent: cell.solver,
                                        'aria-expanded': open.has(cell.id)}),
                el('span', {className: 'options', textContent: listed(cell.options)}));
    }
    if (key === 'setting') {
      return el('td', {}, ...['common', 'best'].filter(name => cell[name])
        .map(name => el('span', {className: `tag ${name}`, textContent: name})));
    }
    if (text) return el('td', {textContent: text(cell)});
    const node = el('td', {className: 'number', textContent: number(cell[key])});
    if (meter && cell[key] != null) {
      node.append(el('span', {className: 'interval',
                              textContent: interval(cell[`${key}_interval`])}));
      if (cell[key] > 0) {
        const share = high > low ? (Math.log(cell[key]) - low) / (high - low) : 0;
        const bar = el('span', {className: 'meter', 'aria-hidden': true});
        bar.style.setProperty('--fill', `${(4 + 96 * share).toFixed(1)}%`);
        node.append(bar);
      }
    }
    return node;
  }
  function detail(cell) {
    const config = JSON.stringify(cell.config, null, 2);
    const block = text => el('div', {className: 'command'}, el('pre', {textContent: text}),
                             copyButton(text));
    return el('tr', {className: 'detail'}, el('td', {colSpan: columns.length},
      el('div', {className: 'inner'},
        strips[cell.strip] ? strip(cell.strip, cell.solver, true) : null,
        el('h3', {textContent: 'Command'}), block(cell.command),
        el('h3', {textContent: 'Config'}), block(config),
        el('h3', {textContent: `${number(cell.seconds)} s for ${report.count} images`}))));
  }

  one('#theme').addEventListener('click', () => {
    const root = document.documentElement;
    const dark = (root.style.colorScheme || (matchMedia('(prefers-color-scheme: dark)').matches
      ? 'dark' : 'light')) === 'dark';
    root.style.colorScheme = dark ? 'light' : 'dark';
  });
  update();
})();
