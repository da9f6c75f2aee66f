// Small helpers for the page's elements.

/** element("button.wide", {type: "button"}, "Text", child): a new element; on... are listeners. */
export function element(kind, attributes = {}, ...children) {
  const [tag, ...classes] = kind.split(".");
  const made = document.createElement(tag);
  if (classes.length) made.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const byId = (id) => document.getElementById(id);

export const number = (value) => value.toLocaleString("en-US");

/** A function that is called once things have been quiet. */
export function quietly(call, after_ms) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...values), after_ms);
  };
}

/** Shows the progress bar while something takes longer than a moment. */
const running = new Set();
export async function withProgress(work) {
  const bar = byId("progress");
  const token = {};
  running.add(token);
  const timer = setTimeout(() => { if (running.has(token)) { bar.hidePopover(); bar.showPopover(); } }, 300); // above a dialog
  try {
    return await work;
  } finally {
    clearTimeout(timer);
    running.delete(token);
    if (!running.size) bar.hidePopover();
  }
}

let toasted;
export function toast(text) {
  toasted?.remove();
  toasted = element("div.toast", { role: "status", popover: "manual" }, text);
  document.body.append(toasted);
  toasted.showPopover(); // above a dialog
  setTimeout(() => toasted?.remove(), 4000);
}

/** The page's own dialogs close when someone clicks beside them. */
export function closeOnOutside(dialog) {
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}
