// Elements from names and texts. Texts become text nodes: nothing here can make HTML of a string.

const SVG = "http://www.w3.org/2000/svg";

/** An element. `on*` are listeners; true, false and null are how attributes are there or not; `class` as written. */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for the parts of a picture. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, String(value));
  }
  made.append(...present(children));
  return made;
}

/** What is there of nested lists of nodes and texts. */
function present(children) {
  return children.flat(Infinity).filter(one => one !== null && one !== undefined && one !== false);
}

/** Takes what is in `place` away and puts other nodes there. */
export function put(place, ...children) {
  place.replaceChildren(...present(children));
  return place;
}

export const byId = id => document.getElementById(id);

/** Says something to a screen reader, politely. */
export function say(text) {
  byId("live").textContent = text;
}

/** An error as a box: what, where, fix. */
export function trouble(error, kind = "stop") {
  const where = error.where ? h("span", { class: "fix" }, `where: ${error.where}`) : null;
  const fix = error.fix ? h("span", { class: "fix" }, `fix: ${error.fix}`) : null;
  const login = error.status === 401 ? h("a", { href: location.pathname }, "log in") : null;
  return h("div", { class: kind }, h("b", {}, error.message || String(error)), where, fix, login);
}

/** A command with a button that copies it, where the browser lets us. */
export function command(text) {
  const box = h("div", { class: "next" }, h("code", {}, text));
  if (navigator.clipboard && window.isSecureContext) {
    const button = h("button", { type: "button", onclick: copy }, "Copy");
    box.append(button);
    async function copy() {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Select it yourself";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    }
  }
  return box;
}
