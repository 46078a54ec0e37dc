// The token under the pointer, or selected with the arrow keys: its tooltip and listeners.

import { $, announce } from "./dom.js";
import { described, details, tokenOf } from "./tokens.js";

const listeners = [];
let selected = null;

/** Calls `listener(element or null)` with the element of the current token. */
export const onSelect = listener => listeners.push(listener);

export function selectToken(element) {
  if (element === selected) return;
  selected?.classList.remove("now");
  selected = element;
  selected?.classList.add("now");
  for (const listener of listeners) listener(selected);
  const tip = $("tip");
  const lines = selected && tokenOf(selected) ? details(tokenOf(selected)) : [];
  tip.hidden = !lines.length;
  if (lines.length) { tip.replaceChildren(...lines); place(tip, selected.getClientRects()[0] ?? selected.getBoundingClientRect()); }
}

/** Puts a tooltip above a box of the page, or below where there is no room. */
export function place(tip, box) {
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.max(8, Math.min(innerWidth - width - 8, box.left + box.width / 2 - width / 2));
  tip.style.left = `${left}px`;
  tip.style.top = `${box.top - height - 8 > 8 ? box.top - height - 8 : box.bottom + 8}px`;
}

export function moveSelection(answer, step) {
  const all = [...answer.querySelectorAll(".t")];
  if (!all.length) return;
  const from = all.indexOf(selected);
  const next = all[from < 0 ? (step > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, from + step))];
  next.scrollIntoView({ block: "nearest" });
  selectToken(next);
  announce(described(tokenOf(next)));
}

export function init() {
  const log = $("log");
  log.addEventListener("pointerover", event => selectToken(event.target.closest(".t")));
  log.addEventListener("pointerleave", () => selectToken(null));
  $("scroll").addEventListener("scroll", () => selectToken(null), { passive: true });
  log.addEventListener("focusout", () => selectToken(null));
  log.addEventListener("keydown", event => {
    const answer = event.target.closest(".body[tabindex]");
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (answer && step && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); moveSelection(answer, step); }
  });
}
