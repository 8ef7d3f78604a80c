// Answers as a table of fields: against the schema, beside each other, beside the gold answer.

import { byId, h, put } from "/web/dom.js";

const PROBLEMS = { missing: "field left out", extra: "not in the schema", type: "wrong type", enum: "not one of the allowed", other: "breaks the schema" };
const VERDICTS = {
  match: ["good", "right"], null: ["good", "rightly empty"], partly: ["warn", "partly right"], wrong: ["bad", "wrong"],
  missed: ["bad", "missed"], hallucinated: ["bad", "not in the gold"], unparsed: ["bad", "unread"],
};

/** `told`: what /ui/check said of the answers of `models`, in their order. */
export function showFields(told, models, row) {
  const section = byId("fields");
  section.hidden = told.fields.length === 0 && told.answers.every(one => one.problems.length === 0);
  if (section.hidden) return;
  const gold = told.fields.some(line => "gold" in line);
  put(byId("fields-note"), notes(told, models, row, gold));
  const head = ["Field", ...models, ...(gold ? ["Gold"] : [])];
  const table = byId("fields-table");
  table.classList.add("stacked");
  table.hidden = told.fields.length === 0;
  put(table,
    h("thead", {}, h("tr", {}, head.map(name => h("th", { scope: "col" }, name)))),
    h("tbody", {}, told.fields.map(line => fieldRow(line, models, gold))));
}

function notes(told, models, row, gold) {
  const made = [];
  told.answers.forEach((one, i) => {
    const name = models[i];
    if (!one.json && told.fields.length) made.push(`${name}: ${one.problems[0] ?? "no JSON object"}.`);
    else if (one.problems.length) made.push(`${name}: ${one.problems.join("; ")}.`);
    if (gold) made.push(`${name}: ${agreement(told.fields, i)}${one.right ? ", all right to the letter" : ""}.`);
  });
  const differ = told.fields.filter(line => line.differ).length;
  if (models.length > 1 && told.answers.every(one => one.json)) {
    made.push(differ ? `${differ} of ${told.fields.length} fields differ between the answers: they are marked.` : "Both answers say the same.");
  }
  if (!told.schema && told.answers.some(one => one.json)) made.push("No schema is known for this model, so only the answers are compared.");
  return made.map(text => h("span", { class: "why" }, text));
}

function agreement(fields, i) {
  const known = fields.filter(line => line.cells[i]?.verdict);
  const right = known.filter(line => ["match", "null"].includes(line.cells[i].verdict)).length;
  return `${right} of ${known.length} fields agree with the gold answer`;
}

function fieldRow(line, models, gold) {
  return h("tr", { class: line.differ ? "differ" : null },
    h("th", { scope: "row" }, line.field, line.differ ? h("span", { class: "chip warn" }, "differ") : null),
    line.cells.map((cell, i) => h("td", { "data-label": models[i] }, cellParts(cell))),
    gold ? h("td", { "data-label": "Gold" }, "gold" in line ? value(line.gold) : "") : null);
}

function cellParts(cell) {
  if (cell === null) return [h("span", { class: "absent" }, "no object")];
  const parts = [value(cell.value)];
  if (cell.verdict) {
    const [kind, words] = VERDICTS[cell.verdict] ?? ["", cell.verdict];
    parts.push(" ", h("span", { class: `chip ${kind}` }, words));
  }
  if (cell.problem) {
    parts.push(" ", h("span", { class: "chip bad" }, PROBLEMS[cell.problem] ?? cell.problem));
    if (cell.words && cell.problem !== "missing" && cell.problem !== "extra") parts.push(h("span", { class: "why" }, cell.words));
  }
  return parts;
}

function value(text) {
  return text === null || text === undefined ? h("span", { class: "absent" }, "–") : h("span", { class: "code", dir: "auto" }, text);
}
