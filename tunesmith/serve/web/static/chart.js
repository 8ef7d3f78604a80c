// A chart of figures over steps: lines, a cursor that reads them by pointer or arrow keys. Our own SVG.

import { h, put, svg } from "/web/dom.js";
import { number } from "/web/words.js";

const LEFT = 52, RIGHT = 10, TOP = 8, BOTTOM = 20; // pixels around the plot
const MANY = 300; // points from which single ones stand back behind their mean

/**
 * A series: {name, colour: 0 to 6, points: [[step, value]], dashed, marks}.
 * `show(series, steps)` draws; the figure is `box`.
 */
export class Chart {
  constructor({ title, about, big = false, zero = false, log = false, words = number }) {
    Object.assign(this, { title, zero, words, series: [], steps: 0, at: null, log: false });
    this.key = h("span", { class: "key" }, about);
    this.keys = h("span", { class: "key" });
    this.read = h("span", { class: "read" });
    this.logBox = log ? h("input", { type: "checkbox", onchange: event => this.choose(event.target.checked) }) : null;
    const switched = log ? h("label", {}, this.logBox, " log scale") : null;
    this.plot = h("div", { class: "plot", tabindex: "0", role: "group", "aria-label": title, onkeydown: event => this.keyed(event),
      onpointermove: event => this.pointed(event), onpointerdown: event => this.pointed(event), onpointerleave: () => this.leave(), onblur: () => this.leave() });
    this.box = h("figure", { class: `chart${big ? " big" : ""}` }, h("figcaption", {}, h("b", {}, title), this.key, this.keys, switched, this.read), this.plot);
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  show(series, steps) {
    this.series = series.filter(one => one.points.length);
    this.steps = Math.max(steps || 0, ...this.series.map(one => one.points.at(-1)[0]), 1);
    put(this.keys, this.series.length > 1 ? this.series.map(one => h("span", { class: "key" }, swatch(one), `${one.name} `)) : null);
    this.box.hidden = this.series.length === 0;
    if (this.logBox && !this.chosen) this.log = this.logBox.checked = wide(this.series);
    this.draw();
    if (this.at !== null) this.readAt(this.at);
    else this.tellLast();
  }

  choose(log) {
    this.chosen = true;
    this.log = log;
    this.draw();
  }

  draw() {
    const width = this.plot.clientWidth, height = this.plot.clientHeight;
    if (!width || !this.series.length) return;
    const values = this.series.flatMap(one => one.points.map(point => point[1])).filter(value => !this.log || value > 0);
    const scale = this.log ? logs(values) : even(values, this.zero);
    this.x = step => LEFT + (width - LEFT - RIGHT) * step / this.steps;
    this.y = value => TOP + (height - TOP - BOTTOM) * (1 - scale.place(value));
    const parts = [];
    for (const tick of scale.ticks) {
      const y = this.y(tick);
      parts.push(svg("line", { class: tick === 0 ? "rule zero" : "rule", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }),
        svg("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, this.words(tick)));
    }
    for (const step of marks(0, this.steps, Math.max(2, Math.floor(width / 90)))) {
      parts.push(svg("text", { x: this.x(step), y: height - 5, "text-anchor": step === 0 ? "start" : "middle" }, step === 0 ? "step 0" : number(step)));
    }
    for (const one of this.series) parts.push(...this.line(one));
    this.cursor = svg("line", { class: "cursor", y1: TOP, y2: height - BOTTOM, visibility: "hidden" });
    this.dots = svg("g", {});
    const told = this.series.map(one => `${one.name}: ${this.words(one.points.at(-1)[1])} at step ${one.points.at(-1)[0]}`).join("; ");
    put(this.plot, svg("svg", { role: "img", "aria-label": `${this.title}. ${told}`, focusable: "false" }, parts, this.cursor, this.dots));
    if (this.at !== null) this.readAt(this.at);
  }

  line(one) {
    const shown = this.log ? one.points.filter(point => point[1] > 0) : one.points;
    const place = points => points.map((point, i) => `${i ? "L" : "M"}${this.x(point[0]).toFixed(1)} ${this.y(point[1]).toFixed(1)}`).join("");
    const kind = `line s${one.colour}${one.dashed ? " dashed" : ""}`;
    const parts = [];
    if (shown.length > MANY) {
      parts.push(svg("path", { class: `${kind} pale`, d: place(shown) }), svg("path", { class: kind, d: place(means(shown)) }));
    } else parts.push(svg("path", { class: kind, d: place(shown) }));
    if (shown.length === 1 || one.marks || shown.length <= 20) {
      parts.push(...shown.map(point => svg("circle", { class: `f${one.colour}`, cx: this.x(point[0]), cy: this.y(point[1]), r: 2.6 })));
    }
    if (one.best) {
      const [step, value] = one.best;
      if (!this.log || value > 0) parts.push(svg("circle", { class: `ring s${one.colour}`, cx: this.x(step), cy: this.y(value), r: 6 }));
    }
    return parts;
  }

  // ---- reading

  pointed(event) {
    const box = this.plot.getBoundingClientRect();
    this.readAt((event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT) * this.steps);
  }

  keyed(event) {
    const all = [...new Set(this.series.flatMap(one => one.points.map(point => point[0])))].sort((a, b) => a - b);
    const here = this.at === null ? all.length : all.findIndex(step => step >= this.at);
    const next = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: all.length - 1 }[event.key];
    if (next === undefined || !all.length) return;
    event.preventDefault();
    this.readAt(all[Math.min(Math.max(0, next), all.length - 1)]);
  }

  leave() {
    this.at = null;
    this.cursor?.setAttribute("visibility", "hidden");
    if (this.dots) put(this.dots);
    this.tellLast();
  }

  /** The logged step nearest to `step`, and what every line says there. */
  readAt(step) {
    if (!this.series.length || !this.cursor) return;
    const near = this.series.map(one => nearest(one.points, step));
    const at = near.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best))[0];
    this.at = at;
    const x = this.x(at);
    for (const [name, value] of [["x1", x], ["x2", x], ["visibility", "visible"]]) this.cursor.setAttribute(name, value);
    const there = this.series.map(one => [one, nearest(one.points, at)]).filter(([, point]) => point[0] === at);
    put(this.dots, there.map(([one, point]) => svg("circle", { class: `f${one.colour}`, cx: x, cy: this.y(point[1]), r: 4 })));
    this.read.textContent = `step ${number(at)}: ${there.map(([one, point]) => `${one.name} ${this.words(point[1])}`).join(", ")}`;
  }

  tellLast() {
    const told = this.series.map(one => `${one.name} ${this.words(one.points.at(-1)[1])}`);
    this.read.textContent = this.series.length ? `last: ${told.join(", ")}` : "";
  }
}

/** Whether values differ so much that an even scale would press most of them onto the axis. */
function wide(series) {
  const values = series.flatMap(one => one.points.map(point => point[1])).filter(value => value > 0);
  return values.length > 2 && Math.max(...values) > 100 * Math.min(...values);
}

function swatch(one) {
  const shape = svg("svg", { class: "swatch", viewBox: "0 0 18 10", "aria-hidden": "true" });
  shape.append(svg("path", { class: `line s${one.colour}${one.dashed ? " dashed" : ""}`, d: "M0 5H18" }));
  return shape;
}

function nearest(points, step) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < step) low = middle;
    else high = middle;
  }
  return Math.abs(points[low][0] - step) <= Math.abs(points[high][0] - step) ? points[low] : points[high];
}

/** Means of neighbours, a fiftieth of the line each. */
function means(points) {
  const window = Math.max(3, Math.round(points.length / 50));
  return points.map((point, i) => {
    const near = points.slice(Math.max(0, i - window), i + window + 1);
    return [point[0], near.reduce((sum, one) => sum + one[1], 0) / near.length];
  });
}

/** Round places between two values, at most `most` of them. */
function marks(low, high, most) {
  if (!(high > low)) return [low];
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(one => one * power).find(one => one >= rough);
  const made = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) made.push(Number((i * step).toPrecision(12)));
  return made;
}

function even(values, zero) {
  let low = Math.min(...values), high = Math.max(...values);
  if (zero) [low, high] = [Math.min(0, low), Math.max(0, high)];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  if (!(zero && low === 0)) low -= room;
  high += room;
  return { place: value => (value - low) / (high - low), ticks: marks(low, high, 4) };
}

function logs(values) {
  const low = Math.log10(Math.min(...values)) - 0.05, high = Math.log10(Math.max(...values)) + 0.05;
  const whole = [];
  for (let i = Math.ceil(low); i <= high; i += 1) whole.push(10 ** i);
  const step = Math.ceil(whole.length / 5) || 1;
  const ticks = whole.length ? whole.filter((_, i) => i % step === 0) : [10 ** ((low + high) / 2)];
  return { place: value => (Math.log10(Math.max(value, 1e-300)) - low) / (high - low || 1), ticks };
}
