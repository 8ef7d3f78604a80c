// One model's column: which model, its answer as it is written, how fast, and what the reader thinks of it.

import { chat } from "/web/api.js";
import { h, put, trouble } from "/web/dom.js";
import { Judge } from "/web/judge.js";

const STATES = { waiting: "is loaded when it is asked first", loading: "is being loaded", failed: "could not be loaded" };

export class Column {
  constructor(page, { number, name, onChange, onJudged }) {
    this.model = name;
    this.answer = null; // {text, finish} of the last one
    this.answered = false;
    this.said = []; // the conversation so far, as the model has seen it
    this.choose = h("select", { "aria-label": number ? "Second model" : "First model", onchange: () => this.change(onChange) });
    this.about = h("div", { class: "about" });
    this.state = h("div", { class: "loading" });
    this.turns = h("div", {});
    this.text = document.createTextNode("");
    this.pre = h("pre", { class: "answer waiting", dir: "auto", tabindex: "0", "aria-label": "Answer" });
    this.pace = h("div", { class: "pace" });
    this.trouble = h("div", {});
    this.judge = new Judge((told, model) => onJudged(model, told));
    this.box = h("article", { class: `column ${number ? "second" : "first"}` },
      h("div", { class: "head" }, this.choose), this.about, this.state, this.turns, this.pre, this.trouble, this.pace,
      this.judge.box);
    this.offered = "";
    this.none = number > 0;
    this.clear();
  }

  async change(onChange) {
    this.model = this.choose.value;
    this.clear();
    this.update(this.models);
    await onChange();
  }

  clear() {
    this.answer = null;
    this.answered = false;
    this.said = [];
    put(this.turns);
    put(this.trouble);
    put(this.pace);
    this.pre.classList.add("waiting");
    put(this.pre, this.model ? "The answer will stand here." : "No model is chosen.");
    this.judge.hide();
  }

  /** How far the models are. */
  update(models) {
    this.models = models;
    const names = models.map(model => model.name);
    if (this.offered !== names.join("\n")) {
      this.offered = names.join("\n");
      put(this.choose, names.map(name => h("option", { value: name }, name)), this.none ? h("option", { value: "" }, "no second model") : null);
    }
    this.choose.value = this.model;
    const known = models.find(model => model.name === this.model);
    this.box.setAttribute("aria-label", this.model || "No model");
    this.about.textContent = known ? facts(known) : "";
    if (!known || known.state === "ready") put(this.state);
    else if (known.state === "failed") put(this.state, this.trouble.hasChildNodes() ? null : trouble({ message: `This model ${STATES.failed}: ${known.detail}` }));
    else if (known.state === "waiting") put(this.state, `This model ${STATES.waiting}.`);
    else this.showProgress(known);
  }

  showProgress(known) {
    const share = Math.round(100 * known.done);
    if (!this.bar || !this.state.contains(this.bar)) {
      this.bar = h("progress", { max: "100", "aria-label": `Loading ${known.name}` });
      this.told = h("span", {});
      put(this.state, this.told, this.bar);
    }
    this.told.textContent = `Loading: ${known.detail || "the weights"}${known.done ? `, ${share}\u00a0%` : ""}`;
    if (known.done) this.bar.value = share;
    else this.bar.removeAttribute("value");
  }

  /** Streams the answer to `messages`; never throws. Returns {said}: what a screen reader is told. */
  async ask(messages, settings, signal) {
    this.clear();
    put(this.turns, messages.length > 1 ? earlier(messages.slice(0, -1)) : null);
    this.pre.setAttribute("aria-busy", "true");
    this.pre.classList.remove("waiting");
    this.text = document.createTextNode("");
    put(this.pre, this.text);
    const pace = { begin: performance.now(), first: 0, last: 0, pieces: 0 };
    const painter = new Painter(this.text, () => this.showPace(pace));
    const told = { text: "", finish: null, usage: null };
    let outcome = "";
    try {
      const whole = await chat({ model: this.model, messages, ...settings }, signal, piece => {
        pace.last = performance.now();
        pace.first ||= pace.last;
        pace.pieces += 1;
        told.text += piece;
        painter.add(piece);
      });
      Object.assign(told, whole);
    } catch (error) {
      outcome = error.name === "AbortError" ? "stopped" : "failed";
      if (outcome === "failed") put(this.trouble, trouble(error));
    }
    painter.end();
    this.pre.removeAttribute("aria-busy");
    if (!told.text && outcome !== "failed") {
      this.pre.classList.add("waiting");
      put(this.pre, outcome ? "Stopped before the first word." : "The answer is empty.");
    } else if (!told.text) put(this.pre);
    this.answer = told;
    this.answered = outcome !== "failed" && (told.text !== "" || !outcome);
    if (this.answered) {
      this.said = [...messages, { role: "assistant", content: told.text }];
      this.judge.show({ model: this.model, prompt: messages, answer: told.text, gold: null });
    }
    this.showPace(pace, told, outcome);
    const tokens = told.usage ? `, ${told.usage.completion_tokens} tokens` : "";
    return { said: `${this.model}: ${outcome || (told.finish === "length" ? "cut at its longest" : "finished")}${tokens}.` };
  }

  showPace(pace, told = null, outcome = "") {
    const parts = [];
    if (pace.first) parts.push(`first token after ${time(pace.first - pace.begin)}`);
    const count = told?.usage?.completion_tokens;
    if (count) parts.push(`${count} tokens`);
    const span = (pace.last - pace.first) / 1000;
    const written = (count ?? pace.pieces) - 1; // the first one belongs to the time before it
    if (span > 0.05 && written > 0) parts.push(`${count ? "" : "about "}${rate(written / span)} tokens/s`);
    if (told && outcome === "stopped") parts.push("stopped by you");
    else if (told?.finish === "length") parts.push("cut: the longest answer was reached");
    put(this.pace, parts.map(part => h("span", {}, part)));
  }
}

/** An earlier turn of the conversation. */
export function turnBox(turn) {
  const who = { user: "You", assistant: "Model", system: "System" }[turn.role] ?? turn.role;
  return h("div", { class: "turn" }, h("b", {}, who), h("div", { dir: "auto" }, turn.content));
}

function earlier(turns) {
  return h("details", { class: "plain" },
    h("summary", {}, `${turns.length} earlier ${turns.length > 1 ? "turns" : "turn"}`), turns.map(turnBox));
}

function facts(model) {
  const run = model.run ? `run ${model.run}` : "";
  const base = model.facts.base ? `base ${model.facts.base}` : "";
  return [model.engine ?? model.facts.engine, run, base].filter(Boolean).join(" · ");
}

const time = milliseconds => (milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`);
const rate = value => (value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en"));

/** Adds pieces once a frame: a fast model must not make the page stutter. */
class Painter {
  constructor(node, onPaint) {
    Object.assign(this, { node, onPaint, rest: "", frame: 0 });
  }

  add(piece) {
    this.rest += piece;
    this.frame ||= requestAnimationFrame(() => this.paint());
  }

  paint() {
    this.frame = 0;
    this.node.appendData(this.rest);
    this.rest = "";
    this.onPaint();
  }

  end() {
    cancelAnimationFrame(this.frame);
    if (this.rest) this.paint();
  }
}
