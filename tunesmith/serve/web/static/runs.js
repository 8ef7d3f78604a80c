// All runs, newest first. #run=NAME opens one, #compare=A&compare=B several.

import { get } from "/web/api.js";
import { CompareView } from "/web/compare.js";
import { byId, h, put, say, trouble } from "/web/dom.js";
import { RunView } from "/web/run_view.js";
import { age, bytes, number, rounded } from "/web/words.js";

const EVERY = 5000; // milliseconds between looks at the list
const MARK = { done: "good", running: "warn", failed: "bad", unreadable: "bad", stale: "bad", stopped: "warn" };
const MOST = 7; // runs in a comparison: one colour each

const page = { shown: null, timer: null, chosen: new Set(), table: null };

addEventListener("hashchange", show);
document.addEventListener("visibilitychange", () => { if (!document.hidden && !page.shown) list(); });
show();

/** What the address asks for. */
function show() {
  if (location.hash === "#main") return;
  const asked = new URLSearchParams(location.hash.slice(1));
  page.shown?.close();
  page.shown = null;
  clearTimeout(page.timer);
  put(byId("banner"));
  if (asked.has("run")) page.shown = new RunView(asked.get("run"));
  else if (asked.has("compare")) page.shown = new CompareView(asked.getAll("compare"));
  if (page.shown) {
    put(byId("view"), page.shown.box);
    document.title = `${page.shown.title} · tunesmith`;
    page.shown.open();
    byId("main").focus({ preventScroll: true });
    scrollTo(0, 0);
    return;
  }
  document.title = "Runs · tunesmith";
  page.table = null;
  put(byId("view"), h("h1", {}, "Runs")); // what was shown goes, even where the list can't be had
  list();
}

async function list() {
  clearTimeout(page.timer);
  let told;
  try {
    told = await get("/ui/runs");
    put(byId("banner"));
  } catch (error) {
    put(byId("banner"), trouble(error));
  }
  if (page.shown || location.hash.includes("=")) return;
  if (told) draw(told);
  if (!document.hidden) page.timer = setTimeout(list, EVERY);
}

function draw(told) {
  if (!page.table) makeList(told);
  put(page.lead, told.runs.length ? `${told.runs.length} ${told.runs.length === 1 ? "run" : "runs"} in ${told.runs_dir}` : "");
  page.empty.hidden = told.runs.length > 0;
  page.whole.hidden = told.runs.length === 0;
  for (const name of page.chosen) if (!told.runs.some(run => run.name === name && run.comparable)) page.chosen.delete(name);
  const fresh = JSON.stringify([told.runs.map(run => ({ ...run, size: 0 })), Math.floor(told.now / 30)]);
  if (fresh === page.last) return; // nothing moves under the reader's hand without need
  page.last = fresh;
  const focused = document.activeElement?.closest("tr")?.dataset.name;
  const what = document.activeElement?.tagName;
  put(page.table, told.runs.map(run => line(run, told.now)));
  if (focused) {
    const row = [...page.table.rows].find(one => one.dataset.name === focused);
    row?.querySelector(what === "INPUT" ? "input" : "a")?.focus();
  }
  offer();
}

function makeList(told) {
  page.last = null;
  page.lead = h("p", { class: "lead" });
  page.table = h("tbody", {});
  const heads = ["Compare", "Run", "State", "Step", "Last sign", "Validation loss", "Base → tuned", "Size"];
  const table = h("div", { class: "scroll" }, h("table", { class: "list text stacked" },
    h("thead", {}, h("tr", {}, heads.map(name => h("th", { scope: "col" }, name)))), page.table));
  page.button = h("button", { type: "button", disabled: true, onclick: compareChosen }, "Compare");
  page.hint = h("span", { class: "note" });
  page.whole = h("div", {}, table, h("div", { class: "buttons chosen" }, page.button, page.hint));
  page.empty = h("div", {}, h("p", { class: "calm" }, `There is no run in ${told.runs_dir} yet.`),
    h("p", {}, "One command makes the first: it trains the embedded model on generated reports, in minutes and without a GPU."),
    h("div", { class: "next" }, h("code", {}, "tunesmith run recipes/quickstart.yaml")));
  put(byId("view"), h("h1", {}, "Runs"), page.lead, page.empty, page.whole);
}

function line(run, now) {
  const compare = h("input", { type: "checkbox", "aria-label": `Compare ${run.name}`, disabled: !run.comparable, onchange: event => choose(run.name, event.target.checked) });
  compare.checked = page.chosen.has(run.name);
  const cells = run.state === "unreadable"
    ? [["State", [mark(run.state), " ", h("span", { class: "note" }, run.error ?? "")]], ["", ""], ["", ""], ["", ""], ["", ""]]
    : [
        ["State", [mark(run.state), ` ${run.phase.replace(/ done$/, "")}`]],
        ["Step", run.step === null ? "–" : `${number(run.step)} of ${run.steps ? number(run.steps) : "?"}`],
        ["Last sign", run.heartbeat === null ? "–" : `${age(now - run.heartbeat)} ago`],
        ["Validation loss", run.best_loss === null ? "–" : number(run.best_loss)],
        ["Base → tuned", headline(run.headline)],
      ];
  return h("tr", { "data-name": run.name },
    h("td", { "data-label": "Compare" }, compare),
    h("th", { scope: "row", class: "name" }, run.state === "unreadable" ? run.name : h("a", { href: `#${new URLSearchParams({ run: run.name })}` }, run.name)),
    cells.map(([label, content]) => h("td", { "data-label": label }, content)),
    h("td", { "data-label": "Size" }, bytes(run.size)));
}

export function mark(state) {
  return h("span", { class: `chip ${MARK[state] ?? ""}` }, state);
}

function headline(found) {
  if (!found) return "–";
  return [`${rounded(found.base)} → ${rounded(found.tuned)} `, h("span", { class: "note" }, found.metric)];
}

function choose(name, on) {
  if (on) page.chosen.add(name);
  else page.chosen.delete(name);
  offer();
}

function offer() {
  const count = page.chosen.size;
  page.button.disabled = count < 2 || count > MOST;
  page.hint.textContent = count > MOST ? `at most ${MOST}` : count < 2 ? "choose two or more runs that have been scored" : `${count} runs; the first chosen one is what the others are compared with`;
  if (count >= 2) say(`${count} runs are chosen.`);
}

function compareChosen() {
  location.hash = [...page.chosen].map(name => new URLSearchParams({ compare: name })).join("&");
}
