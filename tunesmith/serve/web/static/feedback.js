// How many answers have been judged, where they lie, and what to type to train on them.

import { get } from "/web/api.js";
import { byId, command, h, put, trouble } from "/web/dom.js";

/** `told`: what the server said with the last judgement; without it, it is asked. */
export async function showFeedback(model, told = null) {
  const section = byId("feedback");
  try {
    told ??= await get("/ui/feedback", { model });
  } catch (error) {
    section.hidden = false;
    put(section, trouble(error, "warning"));
    return;
  }
  const { train, bad, held_out: held } = told.counts;
  section.hidden = train + bad + held === 0;
  if (section.hidden) return;
  const open = section.querySelector("details")?.open;
  put(section,
    h("h2", { id: "feedback-h" }, "Judged answers"),
    h("p", {}, many(train, "row to train on", "rows to train on"), `, kept in `, h("code", {}, told.file), "."),
    bad ? h("p", { class: "note" }, `${many(bad, "bad answer", "bad answers")} without a correction: nothing to train on yet. `, download(model, "bad")) : null,
    held ? h("p", { class: "note" }, `${many(held, "answer", "answers")} to held-out prompts, kept apart from training. `, download(model, "held_out")) : null,
    train ? h("p", { class: "links" }, download(model, "train")) : null,
    train && told.next.command ? [h("p", {}, "To train on from this adapter:"), command(told.next.command)] : null,
    train ? h("details", { open: Boolean(open) }, h("summary", {}, "The same as lines of a recipe"), h("pre", {}, told.next.recipe)) : null);
}

function download(model, place) {
  const query = new URLSearchParams({ model, place });
  const what = { train: "Download the rows", bad: "Download them", held_out: "Download them" }[place];
  return h("a", { href: `/ui/feedback/download?${query}`, download: "" }, what);
}

const many = (count, one, more) => `${count.toLocaleString("en")} ${count === 1 ? one : more}`;
