// One run: how far it is, its curves, what was proved, what was found, what to type next.

import { get } from "/web/api.js";
import { Curves } from "/web/curves.js";
import { command, h, put, say, trouble } from "/web/dom.js";
import { age, bytes, number, rounded, signed } from "/web/words.js";

const SAID = {
  running: "A process works in this run.",
  done: "This stage is done; the command below comes next.",
  stopped: "It was stopped and goes on where it was with the command below.",
  failed: "It failed; what was done before stays.",
  stale: "It ended without a word (killed, or the power went); the command below goes on from the last checkpoint.",
};
const KIND = { running: "calm", done: "calm", stopped: "warning", failed: "stop", stale: "warning" };

export class RunView {
  constructor(name) {
    Object.assign(this, { title: name, name, over: false, state: null, phase: null });
    this.top = h("div", {}, h("p", { class: "note" }, "Loading …"));
    this.rest = h("div", {});
    this.lead = h("p", { class: "lead" });
    this.curves = new Curves(name, told => this.moved(told), error => this.missing(error));
    this.training = h("div", {}, h("h2", {}, "Training"), this.curves.box);
    this.box = h("div", {}, h("p", { class: "links" }, h("a", { href: "#" }, "← All runs")), h("h1", {}, name), this.lead, this.top,
      this.training, this.rest);
  }

  async open() {
    if (await this.fetch()) await this.curves.look();
  }

  close() {
    this.over = true;
    this.curves.stop();
  }

  /** The curves' looks tell when the run has moved on: then the rest is asked anew. */
  async moved(told) {
    if (this.state === told.state && this.phase === told.phase) return;
    const before = this.state;
    [this.state, this.phase] = [told.state, told.phase];
    if (before === null) return;
    say(`The run is ${told.state}: ${told.phase}.`);
    await this.fetch();
  }

  async fetch() {
    try {
      const told = await get("/ui/run", { name: this.name });
      if (!this.over) this.draw(told);
      return true;
    } catch (error) {
      this.missing(error);
      return false;
    }
  }

  /** Nothing can be said of the run: what stood here is no longer so. */
  missing(error) {
    put(this.top, trouble(error));
    put(this.rest);
    this.training.hidden = true;
    [this.state, this.phase] = ["", ""]; // the next look that succeeds asks anew
    say(error.message);
  }

  draw(told) {
    const one = told.summary;
    put(this.lead, one.address);
    put(this.top, this.head(told), this.cards(told), this.links(told), command(told.next));
    put(this.rest, this.proofs(told), this.recipe(told), this.log());
    this.training.hidden = false;
    [this.state, this.phase] = [one.state, one.phase];
  }

  head(told) {
    const one = told.summary;
    const seen = one.heartbeat === null ? "" : ` Last sign ${age(told.now - one.heartbeat)} ago.`;
    const step = one.step === null ? "" : `, step ${number(one.step)} of ${one.steps ? number(one.steps) : "?"}`;
    return h("div", { class: KIND[one.state] ?? "warning" }, h("b", {}, `${one.state}: ${one.phase}${step}`),
      h("span", { class: "fix" }, ` ${SAID[one.state] ?? ""}${seen}`), one.error ? h("pre", {}, one.error) : null);
  }

  cards(told) {
    const one = told.summary, made = [];
    const card = (label, value, range) => made.push(h("div", { class: "card" }, h("div", { class: "label" }, label), h("div", { class: "value" }, value), h("div", { class: "range" }, range)));
    if (one.headline) {
      const { metric, base, tuned, difference: by, n } = one.headline;
      card(`${metric}, base`, rounded(base), `${number(n)} rows`);
      card(`${metric}, tuned`, rounded(tuned), by.low === null ? signed(by.value) : `${signed(by.value)} (95 %: ${signed(by.low)} to ${signed(by.high)})`);
    }
    if (one.best_loss !== null) card("lowest validation loss", number(one.best_loss), `nats per token, at step ${number(one.best_step)}`);
    const rows = Object.entries(told.rows);
    if (rows.length) card("training rows", number(told.rows.train ?? rows[0][1]), rows.filter(([split]) => split !== "train").map(([split, count]) => `${split} ${number(count)}`).join(", "));
    if (told.proofs.length) {
      const failed = told.proofs.filter(proof => !proof.passed).length;
      card("proofs", failed ? `${failed} failed` : `${told.proofs.length} passed`, failed ? `${told.proofs.length - failed} passed` : "none failed");
    }
    card("size", bytes(one.size), "all its files");
    return h("div", { class: "cards" }, made);
  }

  links(told) {
    const names = { report: "Report: scores, examples, faults", data: "Report of the rows" };
    return h("p", { class: "links" }, told.reports.map(of =>
      h("a", { href: `/ui/report?${new URLSearchParams({ name: this.name, of })}`, target: "_blank", rel: "noopener" }, names[of])));
  }

  proofs(told) {
    if (told.damaged) return [h("h2", {}, "Proofs"), h("div", { class: "stop" }, told.damaged)];
    if (!told.proofs.length) return [h("h2", {}, "Proofs"), h("p", { class: "note" }, "Nothing has been proved yet.")];
    const sorted = [...told.proofs].sort((a, b) => a.passed - b.passed);
    const heads = ["Verdict", "Proof", "Figure (limit)", "What was compared"];
    return [h("h2", {}, "Proofs"), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Proofs" },
      h("table", { class: "text proofs stacked" },
        h("thead", {}, h("tr", {}, heads.map(name => h("th", { scope: "col" }, name)))),
        h("tbody", {}, sorted.map(proof => h("tr", {},
          h("td", { "data-label": "" }, h("span", { class: `chip ${proof.passed ? "good" : "bad"}` }, proof.passed ? "✓ passed" : "✗ failed")),
          h("th", { scope: "row", class: proof.passed ? "passed" : "failed" }, proof.name),
          h("td", { "data-label": "figure" }, `${number(proof.figure)} (limit ${number(proof.limit)})`),
          h("td", { "data-label": "" }, proof.detail))))))];
  }

  recipe(told) {
    const keys = Object.entries(told.recipe);
    if (!keys.length) return null;
    return h("details", {}, h("summary", {}, "Recipe"), h("dl", { class: "facts" },
      keys.flatMap(([key, value]) => [h("dt", {}, key), h("dd", {}, typeof value === "string" ? value : JSON.stringify(value))])));
  }

  log() {
    const text = h("pre", { class: "log", tabindex: "0", "aria-label": "Log" }, "");
    return h("details", { ontoggle: event => event.target.open && this.readLog(text) }, h("summary", {}, "Log"), text);
  }

  async readLog(text) {
    try {
      put(text, (await get("/ui/log", { name: this.name })).log || "It is empty.");
      text.scrollTop = text.scrollHeight;
    } catch (error) {
      put(text, error.message);
    }
  }
}
