// Good, bad, or what it should have been: one judgement of one answer, kept by the server at once.

import { post } from "/web/api.js";
import { h, put, say, svg, trouble } from "/web/dom.js";

const KEPT = {
  train: "Kept as a row to train on.",
  bad: "Kept, but there is nothing to train on yet: correct it.",
  held_out: "Kept apart: this prompt is one of the run's validation or test rows, and training on it would spoil the next score.",
};

export class Judge {
  constructor(onKept) {
    this.onKept = onKept;
    this.sent = Promise.resolve();
    this.good = h("button", { type: "button", class: "good", "aria-pressed": "false", onclick: () => this.vote("good") }, thumb(false), "Good");
    this.bad = h("button", { type: "button", class: "bad", "aria-pressed": "false", onclick: () => this.vote("bad") }, thumb(true), "Bad");
    this.edit = h("button", { type: "button", "aria-expanded": "false", onclick: () => this.open() }, "Correct it");
    this.told = h("div", { class: "note told", role: "status" });
    this.text = h("textarea", { rows: "6", dir: "auto", "aria-label": "Corrected answer" });
    const save = h("button", { type: "button", class: "primary", onclick: () => this.correct() }, "Save the correction");
    const leave = h("button", { type: "button", onclick: () => this.close(true) }, "Cancel");
    this.editor = h("div", { class: "correct", hidden: true }, this.text, h("div", { class: "buttons" }, save, leave));
    this.box = h("div", { hidden: true }, h("div", { class: "judge" }, this.good, this.bad, this.edit, this.told), this.editor);
  }

  hide() {
    this.box.hidden = true;
    this.close(false);
  }

  show(judged) {
    this.judged = { ...judged, id: name() };
    this.verdict = null;
    this.corrected = this.draft = null;
    put(this.told);
    this.press();
    this.box.hidden = false;
  }

  async vote(verdict) {
    const again = this.verdict === verdict; // pressed twice: taken back
    await this.keep(again ? "none" : verdict, null);
  }

  open() {
    if (!this.editor.hidden) return this.close(true);
    this.text.value = this.draft ?? this.judged.answer;
    this.editor.hidden = false;
    this.edit.setAttribute("aria-expanded", "true");
    this.text.focus();
  }

  close(back) {
    this.editor.hidden = true;
    this.edit.setAttribute("aria-expanded", "false");
    if (back) this.edit.focus();
  }

  async correct() {
    this.draft = this.text.value; // it stays at hand, even where Good takes its place
    if (await this.keep("bad", this.text.value)) this.close(true);
  }

  /** Whether the server has it on its disk. What was typed stays where it is until then. One after another: the last
   * word counts. */
  keep(verdict, corrected) {
    const judged = this.judged;
    this.sent = this.sent.then(() => this.send(judged, verdict, corrected));
    return this.sent;
  }

  async send(judged, verdict, corrected) {
    const { id, model, prompt, answer } = judged;
    try {
      const told = await post("/ui/feedback", { id, model, prompt, answer, verdict, corrected });
      if (judged !== this.judged) { // another answer stands here by now
        this.onKept(told, model);
        return false;
      }
      this.verdict = verdict === "none" ? null : verdict;
      this.corrected = told.kept === "bad" ? null : corrected; // what is as it was is no correction
      this.press();
      put(this.told, told.kept ? KEPT[told.kept] : "Taken back.");
      this.onKept(told, model);
      return true;
    } catch (error) {
      if (judged === this.judged) put(this.told, trouble(error));
      say("The judgement was not kept.");
      return false;
    }
  }

  press() {
    this.good.setAttribute("aria-pressed", String(this.verdict === "good"));
    this.bad.setAttribute("aria-pressed", String(this.verdict === "bad"));
    this.edit.textContent = this.corrected === null || this.corrected === undefined ? "Correct it" : "Change the correction";
  }
}

/** A thumb, up or down; no font has to know it. */
function thumb(down) {
  const shape = "M1.5 7h3v7h-3zM6 7l2.6-5.2c1.2 0 1.9.9 1.7 2L9.8 6.4h3.4c.9 0 1.5.8 1.3 1.7l-1.1 4.6c-.2.8-.8 1.3-1.6 1.3H6z";
  return svg("svg", { class: "thumb", viewBox: "0 0 16 16", "aria-hidden": "true" }, svg("path", { d: shape, transform: down ? "rotate(180 8 8)" : null }));
}

/** A name that no other answer has; randomUUID is not there without TLS. */
function name() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `answer-${[...bytes].map(one => one.toString(16).padStart(2, "0")).join("")}`;
}
