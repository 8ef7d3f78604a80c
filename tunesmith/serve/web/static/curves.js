// The curves of a run as it trains: asks for new lines only, and draws them.

import { get } from "/web/api.js";
import { Chart } from "/web/chart.js";
import { h, put, say, trouble } from "/web/dom.js";
import { clock, number } from "/web/words.js";

const EVERY = 2000; // milliseconds between looks at a run that works
const PANELS = [
  ["learning_rate", { title: "Learning rate", about: "", zero: true }],
  ["tokens_per_second", { title: "Speed", about: "tokens/s, validation and checkpoints left out", zero: true }],
  ["memory_gib", { title: "Memory", about: "peak, GiB", zero: true }],
  ["gradient_norm", { title: "Gradient norm", about: "before clipping", zero: true }],
];

export class Curves {
  /** `onState`: what a look said of the run. `onGone`: there is no such run any more. */
  constructor(name, onState, onGone) {
    Object.assign(this, { name, onState, onGone, after: "", metrics: [], timing: [], gaps: [], timer: null, over: false });
    this.loss = new Chart({ title: "Loss", about: "nats per token", big: true, log: true });
    this.gap = new Chart({ title: "Gap", about: "validation − training; growing: overfitting", zero: true });
    this.panels = PANELS.map(([key, how]) => [key, new Chart(how)]);
    this.left = h("p", { class: "note" });
    this.bar = h("progress", { max: "1", "aria-label": "Steps done", hidden: true });
    this.trouble = h("div", {});
    this.empty = h("p", { class: "note" }, "No step has been logged yet.");
    this.box = h("section", { "aria-label": "Curves" }, this.bar, this.left, this.trouble, this.empty,
      h("div", { class: "charts" }, this.loss.box, this.gap.box, this.panels.map(([, chart]) => chart.box)));
    this.seen = () => { if (!document.hidden) this.look(); };
    document.addEventListener("visibilitychange", this.seen);
  }

  stop() {
    this.over = true;
    clearTimeout(this.timer);
    document.removeEventListener("visibilitychange", this.seen);
  }

  async look() {
    clearTimeout(this.timer);
    if (this.over) return;
    let told = null;
    try {
      told = await get("/ui/curve", { name: this.name, after: this.after });
      put(this.trouble);
    } catch (error) {
      if (error.status === 404 && !this.over) {
        this.stop();
        this.onGone(error);
      }
      put(this.trouble, trouble(error, "warning"));
    }
    if (this.over) return;
    if (told) this.take(told);
    if ((!told || told.state === "running") && !document.hidden) this.timer = setTimeout(() => this.look(), EVERY);
  }

  take(told) {
    if (told.reset) [this.metrics, this.timing] = [[], []];
    this.metrics.push(...told.metrics);
    this.timing.push(...told.timing);
    this.gaps = told.gaps;
    this.after = told.after;
    if (told.reset || told.metrics.length || told.timing.length) this.draw(told.steps);
    this.showTime(told);
    this.onState(told);
  }

  draw(steps) {
    const line = (key, from) => from.filter(one => typeof one[key] === "number").map(one => [one.step, one[key]]);
    this.empty.hidden = this.metrics.length > 0;
    this.loss.show(lossLines(this.metrics, 0), steps);
    this.gap.show([{ name: "gap", colour: 1, points: this.gaps.filter(one => one.gap !== null).map(one => [one.step, one.gap]), marks: true }], steps);
    for (const [key, chart] of this.panels) {
      const from = this.metrics.some(one => key in one) ? this.metrics : this.timing;
      chart.show([{ name: chart.title.toLowerCase(), colour: 0, points: line(key, from) }], steps);
    }
  }

  /** Steps that are left, each as long as the last ones took on the wall. */
  showTime(told) {
    const training = told.state === "running" && told.phase === "train";
    const at = Math.max(told.step ?? 0, this.metrics.at(-1)?.step ?? 0);
    this.bar.hidden = !training || !told.steps;
    if (!training) {
      this.left.textContent = "";
      return;
    }
    if (told.steps) this.bar.value = at / told.steps;
    const recent = this.timing.slice(-20).filter(one => typeof one.time === "number");
    const parts = [`step ${number(at)} of ${told.steps ? number(told.steps) : "?"}`];
    if (recent.length > 1 && told.steps) {
      const [first, last] = [recent[0], recent.at(-1)];
      const each = (last.time - first.time) / (last.step - first.step);
      const since = told.now - last.time; // what has gone by since the last line
      parts.push(`about ${clock(Math.max(0, (told.steps - last.step) * each - since))} left`);
    } else parts.push("the time left is known after two logged steps");
    if (!this.told) say(`Training: ${parts[0]}.`);
    this.told = true;
    this.left.textContent = parts.join(", ");
  }
}

/** Training and validation loss of one run as lines of a chart. */
export function lossLines(metrics, colour, name = "") {
  const points = key => metrics.filter(one => typeof one[key] === "number").map(one => [one.step, one[key]]);
  const validation = points("validation_loss");
  const best = validation.reduce((low, point) => (low === null || point[1] < low[1] ? point : low), null);
  const called = what => (name ? `${name}, ${what}` : what);
  return [
    { name: called("training"), colour, points: points("loss") },
    { name: called("validation"), colour: name ? colour : 1, points: validation, dashed: true, marks: true, best },
  ];
}
