// Rows of the run that nobody trained on: one of them becomes the prompt, its gold answer stands beside the answers.

import { get } from "/web/api.js";
import { byId, h, put, trouble } from "/web/dom.js";

export class RowPicker {
  constructor({ onRow, onLeave }) {
    Object.assign(this, { onRow, onLeave, model: null, counts: {}, inUse: false });
    byId("split").addEventListener("change", () => this.to(0));
    byId("number").addEventListener("change", () => this.to(Number(byId("number").value) - 1));
    byId("number").addEventListener("keydown", event => {
      if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) {
        event.preventDefault(); // it must not ask yet
        this.to(Number(byId("number").value) - 1);
      }
    });
    byId("before").addEventListener("click", () => this.to(this.inUse ? this.number - 1 : 0));
    byId("after").addEventListener("click", () => this.to(this.inUse ? this.number + 1 : 0));
    byId("random").addEventListener("click", () => this.to(Math.floor(Math.random() * this.count)));
    byId("leave").addEventListener("click", () => this.leave());
  }

  /** Which of the chosen models has rows; the first one counts. */
  async offer(models, chosen) {
    const found = chosen.map(name => models.find(model => model.name === name)).find(one => one && Object.keys(one.rows).length);
    byId("row").hidden = !found;
    if (!found) return;
    this.model = found.name;
    if (JSON.stringify(found.rows) === JSON.stringify(this.counts)) return;
    this.counts = found.rows;
    put(byId("split"), Object.entries(found.rows).map(([name, count]) => h("option", { value: name }, `${name} (${count})`)));
    this.showPlace();
  }

  get count() {
    return this.counts[byId("split").value] ?? 0;
  }

  async to(number) {
    if (!this.count) return;
    const place = Math.min(Math.max(0, Number.isFinite(number) ? Math.floor(number) : 0), this.count - 1);
    try {
      const row = await get("/ui/rows", { model: this.model, split: byId("split").value, number: place });
      this.number = place;
      this.inUse = true;
      put(byId("rowtold"), `Row ${row.id}${slices(row)}. The prompt below is this row's.`);
      put(byId("gold"), row.gold ?? "");
      byId("goldbox").hidden = row.gold === null;
      byId("leave").hidden = false;
      this.showPlace();
      this.onRow({ ...row, model: this.model });
    } catch (error) {
      put(byId("rowtold"), trouble(error));
    }
  }

  showPlace() {
    byId("number").value = String((this.inUse ? this.number : 0) + 1);
    byId("number").max = String(this.count);
    byId("of").textContent = `of ${this.count}`;
    byId("before").disabled = this.inUse && this.number === 0;
    byId("after").disabled = this.inUse && this.number >= this.count - 1;
  }

  /** The prompt is the reader's own again. */
  leave() {
    if (!this.inUse) return;
    this.inUse = false;
    put(byId("rowtold"), "The prompt is your own now: nothing is compared with a gold answer.");
    byId("goldbox").hidden = true;
    byId("leave").hidden = true;
    this.onLeave();
  }
}

function slices(row) {
  const told = Object.entries(row.slices).map(([name, value]) => `${name}: ${value}`).join(", ");
  return told ? ` (${told})` : "";
}
