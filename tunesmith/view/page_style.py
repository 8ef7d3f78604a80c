"""The style sheet of pages: one column, light and dark, print, phone. No fonts or files from anywhere."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5d6873; --line: #dfe3e8; --paper: #ffffff; --panel: #f5f7f9;
  --good: #00795a; --bad: #b34700; --grey: #626c77; --tuned: #2376b5; --warn: #fff4d6; --warn-ink: #6b4c00;
  --stop: #fde8e2; --stop-ink: #8f2400; --calm: #e6f4ef; --shade: rgb(0 0 0 / 22%); }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #9aa5b0; --line: #323a43; --paper: #14181d;
  --panel: #1c2229; --good: #3cc79c; --bad: #f59a5c; --grey: #8b95a0; --tuned: #6db5ea; --warn: #3a2f12;
  --warn-ink: #f2d58a; --stop: #43201a; --stop-ink: #ffb59e; --calm: #14302a; --shade: rgb(255 255 255 / 26%); } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Noto Sans", sans-serif; }
main { max-width: 1020px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 18px 0 4px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 44px 0 10px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 0.95rem; margin: 22px 0 6px; }
p, ul { margin: 6px 0 10px; } .lead { color: var(--soft); overflow-wrap: anywhere; }
.note { color: var(--soft); font-size: 0.86rem; }
.warning { background: var(--warn); color: var(--warn-ink); padding: 10px 14px; border-radius: 8px; margin: 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 12px; margin: 18px 0 14px; }
.card { background: var(--panel); border-radius: 10px; padding: 14px 16px; }
.card .label { color: var(--soft); font-size: 0.82rem; } .card .value { font-size: 1.9rem; line-height: 1.25;
  font-variant-numeric: tabular-nums; font-weight: 600; } .card.tuned .value { color: var(--tuned); }
.card .range { color: var(--soft); font-size: 0.82rem; font-variant-numeric: tabular-nums; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; font-size: 0.86rem; margin: 14px 0; }
dl.facts dt { color: var(--soft); } dl.facts dd { margin: 0; overflow-wrap: anywhere; }
code, pre, .mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 0.86em; }
.scroll { overflow-x: auto; margin: 8px 0 10px; }
.scroll, figure { background: linear-gradient(to right, var(--paper) 40%, transparent) 0 0 / 40px 100% no-repeat local,
  linear-gradient(to left, var(--paper) 40%, transparent) 100% 0 / 40px 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) 0 0 / 14px 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) 100% 0 / 14px 100% no-repeat scroll; } /* there is more */
table { border-collapse: collapse; font-size: 0.87rem; font-variant-numeric: tabular-nums; min-width: 60%; }
th, td { text-align: right; padding: 5px 9px; border-bottom: 1px solid var(--line); vertical-align: baseline; }
th { font-weight: 600; color: var(--soft); white-space: nowrap; } thead th { border-bottom: 1.5px solid var(--soft); }
th:first-child, td:first-child { text-align: left; padding-left: 2px; } table.text th, table.text td { text-align: left;
  overflow-wrap: break-word; } tbody tr:last-child td { border-bottom: none; }
table.proofs td:nth-child(-n+4) { white-space: nowrap; }
td small { display: block; color: var(--soft); font-size: 0.78rem; white-space: nowrap; }
td .what { display: block; color: var(--soft); font-size: 0.78rem; min-width: 17em; max-width: 30em; font-weight: 400;
  white-space: normal; overflow-wrap: anywhere; } table.two-text :is(th, td):nth-child(2) { text-align: left; }
table.small td { color: var(--grey); } tr.total td { font-weight: 600; border-top: 1.5px solid var(--soft); }
.match, .passed { color: var(--good); } .wrong, .hallucinated, .failed { color: var(--bad); font-weight: 600; }
.missed, .partly { color: var(--bad); } .null, .unparsed { color: var(--grey); }
.tag { display: inline-block; padding: 0 7px; border-radius: 9px; background: var(--panel); font-size: 0.78rem;
  margin-left: 6px; white-space: nowrap; }
a { color: var(--tuned); }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 14px 0 0; font-size: 0.87rem; }
.calm { background: var(--calm); color: var(--good); padding: 10px 14px; border-radius: 8px; margin: 0; }
.stop { background: var(--stop); color: var(--stop-ink); padding: 10px 14px; border-radius: 8px; margin: 0; }
.level { display: inline-block; padding: 0 8px; border-radius: 9px; font-size: 0.78rem; font-weight: 600;
  background: var(--panel); color: var(--grey); } .level.error { background: var(--stop); color: var(--stop-ink); }
.level.warn { background: var(--warn); color: var(--warn-ink); }
.finding summary .many { font-variant-numeric: tabular-nums; margin-left: 6px; display: inline-block; }
.finding summary .what { display: block; color: var(--soft); font-size: 0.86rem; padding-left: 1.05em; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 4px 24px; }
.pair > * { min-width: 0; } .pair figure svg { min-width: 0; } figcaption { font-size: 0.86rem; color: var(--soft); }
.bar { display: inline-block; width: 84px; height: 9px; border-radius: 2px; background: var(--line); overflow: hidden;
  vertical-align: middle; } .bar i { display: block; height: 100%; background: var(--tuned); }
.bar.two { position: relative; } .bar.two i { position: absolute; left: 0; top: 0; opacity: 0.45; }
.bar.two i + i { opacity: 1; }
.bar.bad i { background: var(--bad); } .bar.grey i { background: var(--grey); }
table.counts .of { min-width: 8em; } table.faults td:nth-child(3), table.compared td + td {
  white-space: nowrap; } table.counts td, table.bars td:not(:first-child) { white-space: nowrap; }
.of { display: inline-block; min-width: 4.6em; text-align: right; margin-left: 8px; white-space: nowrap; }
td .code, .code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 0.86em; white-space: pre-wrap; overflow-wrap: anywhere; background: var(--panel); border-radius: 4px;
  padding: 1px 5px; unicode-bidi: isolate; } td .code { overflow-wrap: break-word; }
details { border: 1px solid var(--line); border-radius: 8px; margin: 8px 0; padding: 0 14px; }
details[open] { padding-bottom: 10px; } summary { cursor: pointer; padding: 8px 0; }
details details { border: none; padding: 0; margin: 4px 0; } details details summary { color: var(--soft);
  font-size: 0.86rem; padding: 4px 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--panel); border-radius: 6px; padding: 10px 12px;
  margin: 4px 0; } .text-in { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.9rem; margin: 6px 0; }
mark { background: none; color: inherit; border-bottom: 2px solid var(--good); }
mark.given { border-bottom: 2px dashed var(--bad); } mark.both { border-bottom: 4px double var(--good); }
mark sub { color: var(--soft); font-size: 0.7em; vertical-align: baseline; margin-left: 2px; }
.skip { position: absolute; left: -999em; } .skip:focus { left: 8px; top: 8px; z-index: 2; padding: 8px 12px;
  background: var(--paper); outline: 2px solid var(--tuned); }
:focus-visible { outline: 2px solid var(--tuned); outline-offset: 2px; }
ul.next { padding-left: 0; list-style: none; margin: 10px 0; } ul.next li { border-left: 4px solid var(--tuned);
  background: var(--panel); border-radius: 0 8px 8px 0; padding: 8px 14px; margin: 6px 0; }
ul.next .many { color: var(--soft); font-size: 0.82rem; margin-left: 8px; white-space: nowrap; }
.card.doubt .value { color: var(--grey); text-decoration: underline wavy var(--bad) 2px; text-underline-offset: 5px; }
th button { font: inherit; color: inherit; background: none; border: none; padding: 0; cursor: pointer;
  white-space: nowrap; } th button::after { content: " ↕"; opacity: 0.45; }
th[aria-sort=ascending] button::after { content: " ↑"; opacity: 1; }
th[aria-sort=descending] button::after { content: " ↓"; opacity: 1; }
tr.small td, tr.small td a { color: var(--grey); } tr.group td { color: var(--soft); font-size: 0.78rem;
  padding-top: 12px; } tr.main td:first-child { font-weight: 600; } table.grid { min-width: 0; }
table.grid th { white-space: nowrap; font-weight: 400; } table.grid thead th { vertical-align: bottom; }
table.grid td { text-align: center; min-width: 3.4em; border: 1px solid var(--paper); }
table.grid td.cell { background: rgb(213 94 0 / var(--n)); color: var(--ink); } table.grid td.cell.good { background:
  rgb(0 158 115 / var(--n)); } table.grid td:not(.cell) { color: var(--grey); }
#filters { display: flex; flex-wrap: wrap; gap: 8px 22px; align-items: center; background: var(--panel);
  padding: 10px 14px; border-radius: 8px; margin: 12px 0; font-size: 0.9rem; } #filters[hidden] { display: none; }
#filters fieldset { border: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 2px 14px; }
#filters legend { float: left; margin-right: 12px; padding: 0; color: var(--soft); } #filters button, #filters select {
  font: inherit; color: var(--ink); background: var(--paper); border: 1px solid var(--grey); border-radius: 6px;
  padding: 3px 10px; max-width: 100%; } #filters output { color: var(--soft); margin-left: auto; }
.harm { display: inline-block; width: 1.5em; text-align: center; border-radius: 4px; font-weight: 600;
  font-size: 0.82rem; }
.harm4 { background: var(--stop); color: var(--stop-ink); } .harm3 { background: var(--warn); color: var(--warn-ink); }
.harm2, .harm1, .harm0 { background: var(--panel); color: var(--grey); }
.halves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 4px 24px; }
.halves > * { min-width: 0; } .halves figure svg { min-width: 0; } .halves h3 { margin-bottom: 0; }
.raw { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 0 18px; }
.raw > * { min-width: 0; } .raw h4 { margin: 8px 0 2px; font-size: 0.82rem; color: var(--soft); font-weight: 600; }
figure { margin: 12px 0; overflow-x: auto; } figure svg { display: block; height: auto; min-width: 600px; }
figure.fit svg { min-width: 0; }
figure svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif !important; }
footer { color: var(--soft); font-size: 0.82rem; margin-top: 48px; }
@media (max-width: 560px) { main { padding: 14px 12px 40px; } dl.facts { grid-template-columns: 1fr; gap: 0; }
  dl.facts dd { margin-bottom: 6px; } th, td { padding: 4px 7px; } h1 { font-size: 1.35rem; }
  .bar { width: 44px; } .of { min-width: 3.6em; } table.counts .bar { display: none; }
  table.counts .of { min-width: 0; } #filters output { margin-left: 0; } td .what { min-width: 11em; } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --panel: #f3f3f3; }
  main { max-width: none; padding: 0; } h2 { break-after: avoid; } figure, tr, details { break-inside: avoid; }
  body { font-size: 10.5pt; } .scroll { overflow: visible; }
  nav, .skip, #filters { display: none !important; } th button::after { content: ""; } }
"""
