// Several runs: their curves in one picture, and what `tunesmith compare` can tell from their answers.

import { get } from "/web/api.js";
import { Chart } from "/web/chart.js";
import { lossLines } from "/web/curves.js";
import { h, put, say, trouble } from "/web/dom.js";
import { number, score, signedScore } from "/web/words.js";

export class CompareView {
  constructor(names) {
    Object.assign(this, { names, title: names.join(" · "), over: new AbortController() });
    this.loss = new Chart({ title: "Loss", about: "nats per token; full: training, dashed: validation", big: true, log: true });
    this.curves = h("div", { class: "charts" }, this.loss.box);
    this.told = h("div", {}, h("p", { class: "note", role: "status" }, "The answers are being compared …"), h("progress", { "aria-label": "Comparing" }));
    this.box = h("div", {}, h("p", { class: "links" }, h("a", { href: "#" }, "← All runs")), h("h1", {}, "Runs compared"),
      h("p", { class: "lead" }, this.title), this.told, h("h2", {}, "Training"), this.curves);
  }

  close() {
    this.over.abort();
  }

  async open() {
    await Promise.all([this.compare(), this.draw()]);
  }

  async draw() {
    try {
      const lines = [];
      for (const [i, name] of this.names.entries()) {
        const told = await get("/ui/curve", { name }, this.over.signal);
        lines.push(...lossLines(told.metrics, i % 7, name));
      }
      this.loss.show(lines, 0);
      if (!lines.some(line => line.points.length)) put(this.curves, h("p", { class: "note" }, "None of them has logged a step."));
    } catch (error) {
      if (error.name !== "AbortError") put(this.curves, trouble(error, "warning"));
    }
  }

  async compare() {
    try {
      const told = await get("/ui/compare", { run: this.names }, this.over.signal);
      put(this.told, findings(told), scores(told), told.comparisons.map(one => slices(told, one)));
      say("The comparison is there.");
    } catch (error) {
      if (error.name !== "AbortError") put(this.told, trouble(error));
    }
  }
}

function findings(told) {
  return [h("ul", { class: "found" }, told.findings.map(text => h("li", {}, typed(text)))),
    h("p", { class: "note" }, `${number(told.rows)} rows of ${number(told.documents)} documents, the same in all runs; 95 % intervals by document.`)];
}

function scores(told) {
  const columns = told.groups.map(group => group.name);
  const names = Object.keys(told.scores[columns[0]]).filter(name => !name.startsWith("gold_") && columns.some(column => told.scores[column][name].value !== null));
  names.sort((a, b) => (b === told.metric) - (a === told.metric) || a.includes(":") - b.includes(":"));
  const pair = one => (told.comparisons.length === 1 ? "difference" : `${one.second} − ${one.first}`);
  const row = name => h("tr", {}, h("th", { scope: "row" }, name),
    columns.map(column => h("td", {}, score(told.scores[column][name].value))),
    told.comparisons.map(one => h("td", {}, signedScore(one.differences[name].value), " ", h("span", { class: "note" }, range(one.differences[name])))));
  const whole = list => table(["Metric", ...columns, ...told.comparisons.map(pair)], list.map(row), "Scores");
  const main = names.filter(name => !name.includes(":")), fields = names.filter(name => name.includes(":"));
  return [h("h2", {}, "Scores"), whole(main),
    fields.length ? h("details", {}, h("summary", {}, `By field (${fields.length} metrics)`), whole(fields)) : null];
}

function slices(told, one) {
  if (!one.slices.length) return null;
  const rows = one.slices.map(part => h("tr", {}, h("th", { scope: "row" }, `${part.slice}: ${part.value}${part.small ? " *" : ""}`),
    h("td", {}, number(part.rows)), h("td", {}, score(part.first.value)), h("td", {}, score(part.second.value)),
    h("td", {}, signedScore(part.difference.value), " ", h("span", { class: "note" }, range(part.difference)))));
  return [h("h2", {}, `Slices by ${told.metric}: ${one.second} against ${one.first}`),
    table(["Slice", "Rows", one.first, one.second, "Difference"], rows, "Slices"), h("p", { class: "note" }, "* too few rows or documents to say much.")];
}

function table(heads, rows, name) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name },
    h("table", { class: "figures" }, h("thead", {}, h("tr", {}, heads.map(head => h("th", { scope: "col" }, head)))), h("tbody", {}, rows)));
}

const range = by => (by.low === null ? "" : `(${signedScore(by.low)} to ${signedScore(by.high)})`);

/** What stands between backticks as code. */
const typed = text => text.split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part));
