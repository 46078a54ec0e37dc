// Elements, announcements and the storage of the browser. Text of a model is only ever set as text, never as HTML.

/** An element: `make("p.nothing", "text", child, {title: "…"})`; plain objects are properties, and "aria-…" attributes. */
export function make(kind, ...content) {
  const [tag, ...classes] = kind.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const part of content) {
    if (part === null || part === undefined) continue;
    if (part instanceof Node || typeof part !== "object") { element.append(part); continue; }
    for (const [name, value] of Object.entries(part)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (/^(aria-|data-|role)/.test(name)) element.setAttribute(name, value);
      else element[name] = value;
    }
  }
  return element;
}

export const $ = id => document.getElementById(id);

/** Announces a text to screen readers. */
export function announce(text) { $("announcement").textContent = text; }

/** The value saved in this browser under a name; null if there is none or storage is blocked. */
export function loadItem(name) {
  try { return JSON.parse(localStorage.getItem(`synthe.${name}`)); } catch { return null; }
}

/** Saves a value in this browser. Returns false if storage is full or blocked. */
export function saveItem(name, value) {
  try { localStorage.setItem(`synthe.${name}`, JSON.stringify(value)); return true; } catch { return false; }
}
