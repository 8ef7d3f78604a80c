"""The report's only script: tables that sort, examples that are ordered and filtered. The page says all without it.

It reads what stands in the page and moves it about; it never makes HTML of text. The page's policy names its hash, so
that nothing else may run (page_parts.document).
"""

SCRIPT = """
(() => {
  'use strict';
  const figure = text => {
    const found = text.replace(/\\u2212/g, '-').replace(/,/g, '').match(/^\\s*([+-]?\\d+(\\.\\d+)?(e[+-]?\\d+)?)/i);
    return found ? Number(found[1]) : null;
  };
  const cellOf = (row, place) => {
    const cell = row.cells[place];
    return cell && cell.firstChild ? cell.firstChild.textContent.trim() : '';
  };
  const compare = (one, other, sign) => {
    const a = figure(one), b = figure(other);
    if (a === null && b === null) return sign * one.localeCompare(other);
    if (a === null || b === null) return a === null ? 1 : -1;
    return sign * (a - b);
  };
  for (const table of document.querySelectorAll('table.sortable')) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, place) => {
      if (!head.textContent.trim()) return;
      const button = document.createElement('button');
      button.type = 'button';
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener('click', () => {
        const down = head.getAttribute('aria-sort') !== 'descending';
        heads.forEach(other => other.removeAttribute('aria-sort'));
        head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
        const body = table.tBodies[0], rows = [...body.rows];
        const last = rows.filter(row => row.classList.contains('total'));
        const moved = rows.filter(row => !row.classList.contains('total'));
        moved.sort((a, b) => compare(cellOf(a, place), cellOf(b, place), down ? -1 : 1));
        body.append(...moved, ...last);
      });
    });
  }
  const filters = document.getElementById('filters');
  if (!filters) return;
  const list = document.getElementById('rows'), rows = [...list.children];
  const kind = document.getElementById('kind'), told = document.getElementById('told');
  const most = Number(list.dataset.most);
  const draw = () => {
    const order = filters.querySelector('input[name=order]:checked').value;
    rows.sort((a, b) => a.dataset[order] - b.dataset[order]);
    let shown = 0;
    for (const row of rows) {
      const fits = kind.value === '' || row.dataset.kinds.split(' ').includes(kind.value);
      row.hidden = !fits || (kind.value === '' && shown >= most);
      shown += row.hidden ? 0 : 1;
    }
    list.append(...rows);
    told.textContent = shown + (shown === 1 ? ' row' : ' rows');
  };
  filters.addEventListener('change', draw);
  document.getElementById('unfold').addEventListener('click', event => {
    const open = event.target.getAttribute('aria-pressed') !== 'true';
    event.target.setAttribute('aria-pressed', String(open));
    for (const row of rows) if (!row.hidden) row.open = open;
  });
  filters.hidden = false;
  draw();
})();
"""
