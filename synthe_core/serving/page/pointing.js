// The token under the pointer, or selected with the arrow keys: its tooltip and listeners.

import { described, details, tokenOf } from "./tokens.js";
import { $, say } from "./words.js";

const listeners = [];
let at = null;

/** Calls `listener(element or null)` with the element of the current token. */
export const onPoint = listener => listeners.push(listener);

export function point(element) {
  if (element === at) return;
  at?.classList.remove("now");
  at = element;
  at?.classList.add("now");
  for (const listener of listeners) listener(at);
  const tip = $("tip");
  const told = at && tokenOf(at) ? details(tokenOf(at)) : [];
  tip.hidden = !told.length;
  if (told.length) { tip.replaceChildren(...told); place(tip, at.getClientRects()[0] ?? at.getBoundingClientRect()); }
}

function place(tip, box) {
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.max(8, Math.min(innerWidth - width - 8, box.left + box.width / 2 - width / 2));
  tip.style.left = `${left}px`;
  tip.style.top = `${box.top - height - 8 > 8 ? box.top - height - 8 : box.bottom + 8}px`;
}

export function walk(answer, step) {
  const all = [...answer.querySelectorAll(".t")];
  if (!all.length) return;
  const from = all.indexOf(at);
  const next = all[from < 0 ? (step > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, from + step))];
  next.scrollIntoView({ block: "nearest" });
  point(next);
  say(described(tokenOf(next)));
}

export function begin() {
  const log = $("log");
  log.addEventListener("pointerover", event => point(event.target.closest(".t")));
  log.addEventListener("pointerleave", () => point(null));
  $("scroll").addEventListener("scroll", () => point(null), { passive: true });
  log.addEventListener("focusout", () => point(null));
  log.addEventListener("keydown", event => {
    const answer = event.target.closest(".body[tabindex]");
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (answer && step && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); walk(answer, step); }
  });
}
