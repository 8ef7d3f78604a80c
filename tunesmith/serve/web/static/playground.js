// The playground: one prompt, one or two models beside each other.

import { get, post } from "/web/api.js";
import { Column, turnBox } from "/web/column.js";
import { byId, put, say, trouble } from "/web/dom.js";
import { showFeedback } from "/web/feedback.js";
import { showFields } from "/web/fields.js";
import { RowPicker } from "/web/rows.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const LOADING = 1000, IDLE = 5000; // milliseconds between looks at the models

const page = { models: [], columns: [], row: null, earlier: [], asking: null, watch: null };
const picker = new RowPicker({ onRow: useRow, onLeave: leaveRow });

start();

async function start() {
  byId("ask").addEventListener("submit", event => { event.preventDefault(); ask(false); });
  byId("follow").addEventListener("click", () => ask(true));
  byId("halt").addEventListener("click", stop);
  document.addEventListener("keydown", keys);
  for (const name of [...NUMBERS, "stop"]) byId(name).addEventListener("input", showSettings);
  byId("prompt").addEventListener("input", () => {
    if (page.row && byId("prompt").value !== page.row.prompt.at(-1).content) picker.leave();
  });
  await look();
}

function keys(event) {
  if (event.key === "Escape" && page.asking) stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && byId("ask").contains(event.target)) {
    event.preventDefault();
    ask(false);
  }
}

/** Asks how far the models are; more often while one of them is loaded. */
async function look() {
  clearTimeout(page.watch);
  try {
    page.models = (await get("/ui/models")).models;
    put(byId("banner"));
  } catch (error) {
    put(byId("banner"), trouble(error));
    page.watch = setTimeout(look, IDLE);
    return;
  }
  if (page.models.length === 0) {
    put(byId("banner"), trouble({ message: "this server has no model", fix: "tunesmith serve MODEL" }));
    return;
  }
  if (page.columns.length === 0) makeColumns();
  for (const column of page.columns) column.update(page.models);
  showSettings();
  const busy = page.models.some(model => model.state === "loading") || (page.asking && !page.asking.answered);
  const failed = page.models.some(model => model.state === "waiting");
  if (busy || failed) page.watch = setTimeout(look, busy ? LOADING : IDLE);
  await picker.offer(page.models, page.columns.map(column => column.model));
}

/** The tuned model, and beside it the model that it was made of. */
function makeColumns() {
  const [tuned, ...others] = page.models;
  const first = new Column(page, { number: 0, name: tuned.name, onChange: changed, onJudged: judged });
  page.columns.push(first);
  if (others.length) {
    const base = others.find(one => isBase(one) && one.facts.base === tuned.facts.base) ?? others.find(isBase) ?? others[0];
    page.columns.push(new Column(page, { number: 1, name: base.name, onChange: changed, onJudged: judged }));
  }
  put(byId("columns"), page.columns.map(column => column.box));
  byId("prompt").focus({ preventScroll: true });
  showFeedback(tuned.name);
}

function isBase(model) {
  return !model.facts.adapter && /base/.test(`${model.facts.kind ?? ""} ${model.name}`);
}

async function changed() {
  forget();
  showSettings();
  await picker.offer(page.models, page.columns.map(column => column.model));
}

/** What was answered no longer belongs to what is asked. */
function forget() {
  byId("follow").disabled = true;
  byId("fields").hidden = true;
}

function useRow(row) {
  page.row = row;
  const turns = [...row.prompt];
  byId("system").value = turns[0]?.role === "system" ? turns.shift().content : "";
  byId("prompt").value = turns.pop().content;
  page.earlier = turns;
  const box = byId("earlier");
  box.hidden = turns.length === 0;
  put(box, turns.map(turnBox));
  for (const column of page.columns) column.clear();
  forget();
}

function leaveRow() {
  page.row = null;
  page.earlier = [];
  byId("earlier").hidden = true;
}

function settings() {
  const made = {};
  for (const name of NUMBERS) {
    const field = byId(name);
    if (field.value !== "") made[name] = Number(field.value);
  }
  const stops = byId("stop").value.split("\n").filter(one => one !== "");
  if (stops.length) made.stop = stops;
  return made;
}

/** What the settings are in a word, and the measured ones as placeholders. */
function showSettings() {
  const known = page.models.find(model => model.name === page.columns[0]?.model)?.defaults;
  for (const name of ["temperature", "top_p", "max_tokens"]) {
    byId(name).placeholder = known ? `as measured: ${known[name]}` : "as measured";
  }
  const given = Object.entries(settings()).map(([name, value]) => `${name} ${Array.isArray(value) ? value.length : value}`);
  byId("set").textContent = given.length ? given.join(", ") : "as measured";
}

async function ask(follow) {
  const form = byId("ask");
  const wrong = form.querySelector(".settings :invalid");
  if (wrong) wrong.closest("details").open = true;
  if (page.asking || !form.reportValidity()) return;
  const question = byId("prompt").value;
  const system = byId("system").value;
  const before = system.trim() ? [{ role: "system", content: system }] : [];
  const asking = { stop: new AbortController(), answered: false };
  page.asking = asking;
  busy(true);
  forget();
  const row = follow ? null : page.row;
  if (follow) picker.leave();
  say("Asked. The answers are being written.");
  const given = settings();
  // a column that has not answered has nothing to go on from
  const all = page.columns.filter(column => column.model && (!follow || column.answered)).map(column => {
    const history = follow ? column.said : [...before, ...page.earlier];
    return column.ask([...history, { role: "user", content: question }], given, asking.stop.signal);
  });
  clearTimeout(page.watch);
  page.watch = setTimeout(look, LOADING); // a model that waits is loaded now: its progress shows
  const answers = await Promise.all(all);
  asking.answered = true;
  page.asking = null;
  busy(false);
  const done = page.columns.filter(column => column.answered);
  byId("follow").disabled = done.length === 0;
  say(answers.map(one => one.said).join(" "));
  if (done.length) await check(done, row);
  await look();
}

function stop() {
  page.asking?.stop.abort();
}

/** A button that can't be used loses the keyboard's place: it is handed on first. */
function busy(on) {
  const [from, to] = on ? ["go", "halt"] : ["halt", "go"];
  const here = document.activeElement === byId(from) || document.activeElement === byId("follow");
  byId(to).disabled = false;
  if (here) byId(to).focus();
  byId(from).disabled = true;
  if (on) byId("follow").disabled = true;
  for (const column of page.columns) column.choose.disabled = on;
}

/** Field by field, on the server: the same reader and the same schema that scored the run. */
async function check(columns, row) {
  const answers = columns.map(column => ({ model: column.model, answer: column.answer.text }));
  const body = { answers };
  if (row) body.row = { model: row.model, split: row.split, number: row.number };
  try {
    showFields(await post("/ui/check", body), columns.map(column => column.model), row);
  } catch (error) {
    byId("fields").hidden = false;
    put(byId("fields-table"));
    put(byId("fields-note"), trouble(error, "warning"));
  }
}

function judged(model, told) {
  showFeedback(model, told);
}
