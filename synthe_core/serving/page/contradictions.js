// Sentences of a swarm's answer that contradict what is known: marked in the text, with the fact beside the pointer or the focus.

import { $, make } from "./dom.js";
import { day } from "./format.js";
import { place } from "./selection.js";
import { element } from "./tokens.js";

const SOURCES = { operator: "written by who runs the swarm", user: "said by the user", statement: "said by a user", model: "read by the base in a conversation", imported: "imported" };
export const sourceOf = name => SOURCES[name] ?? name;

/** A fact as words: "user lives in Paris". */
export const factText = fact => [fact.subject, ...(fact.negated ? ["not"] : []), fact.predicate.replaceAll("_", " "), fact.object].join(" ");

/** The elements of an answer's tokens, with each contradicting sentence in a <mark>. */
export function marked(tokens, contradictions = []) {
  const text = tokens.map(t => t.text).join(""), nodes = [];
  const pending = sentences(text, contradictions);
  let at = 0, mark = null;
  for (const token of tokens) {
    let rest = token;
    while (rest) {
      const next = pending[0];
      const until = !next ? Infinity : at < next.start ? next.start : next.end;
      const [part, remainder] = split(rest, until - at);
      const inside = Boolean(next) && at >= next.start;
      if (inside && !mark) nodes.push(mark = markOf(next.found));
      (inside ? mark : { append: node => nodes.push(node) }).append(element(part));
      at += part.text.length;
      if (next && at >= next.end) { pending.shift(); mark = null; }
      rest = remainder;
    }
  }
  return nodes;
}

/** Where the sentences are, in units of JavaScript's strings; several contradictions of one sentence together. */
function sentences(text, contradictions) {
  const points = [...text], unit = offset => points.slice(0, offset).join("").length;
  const places = new Map();
  for (const each of contradictions) {
    if (each.end > each.start) places.set(each.start, { start: unit(each.start), end: unit(each.end), found: [...places.get(each.start)?.found ?? [], each] });
  }
  const ordered = [...places.values()].sort((a, b) => a.start - b.start);
  return ordered.filter((place, i) => place.end <= text.length && (!i || place.start >= ordered[i - 1].end));
}

function split(token, length) {
  if (token.text.length <= length) return [token, null];
  return [{ ...token, text: token.text.slice(0, length) }, { ...token, text: token.text.slice(length) }];
}

function markOf(found) {
  const mark = make("mark.contradiction", { tabIndex: 0, "aria-describedby": "fact" });
  const show = () => {
    const tip = $("fact");
    tip.replaceChildren(...found.map(each => make("p", "known: ", make("strong", factText(each.fact)), make("span", ` (f${each.fact.id}, ${origin(each.fact)})`))));
    tip.hidden = false;
    place(tip, mark.getClientRects()[0] ?? mark.getBoundingClientRect());
  };
  for (const event of ["pointerenter", "focus"]) mark.addEventListener(event, show);
  for (const event of ["pointerleave", "blur"]) mark.addEventListener(event, hide);
  return mark;
}

const origin = fact => [sourceOf(fact.source ?? ""), fact.valid_from ? `since ${day(1000 * fact.valid_from)}` : ""].filter(Boolean).join(", ");

function hide() { $("fact").hidden = true; }

/** The contradictions of an answer as a list; null without any. */
export function listed(contradictions = []) {
  if (!contradictions.length) return null;
  const different = new Map(); // a sentence may come several times
  for (const each of contradictions) {
    const key = JSON.stringify([each.sentence, each.fact.id]);
    different.set(key, { ...each, times: 1 + (different.get(key)?.times ?? 0) });
  }
  return make("ul.contradictions", ...[...different.values()].map(each => make("li",
    make("q", each.sentence), each.times > 1 ? ` (${each.times} times)` : null, " contradicts what is known: ", make("b", factText(each.fact)), make("span", ` (f${each.fact.id}, ${origin(each.fact)}${each.score < 1 ? `, ${Math.round(100 * each.score)}% likely` : ""})`))),
  { "aria-label": "Contradictions with what is known" });
}

export function init() {
  $("scroll").addEventListener("scroll", hide, { passive: true });
  addEventListener("keydown", event => { if (event.key === "Escape") hide(); });
}
