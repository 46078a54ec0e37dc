// Tokens of an answer: one element each, coloured by confidence, with a tooltip.

import { make, percent, visible } from "./words.js";

const STEPS = [.15, .3, .5, .7, .9]; // bounds of the colours c0 (unsure) to c5 (sure)
const held = new WeakMap();

/** A token: its text, the model's confidence, its probability, and the most likely [text, probability]; null if unknown. */
export const token = (text, sure = null, chance = null, top = []) => ({ text, sure, chance, top });
export const tokenOf = element => held.get(element);

/** Two tokens as one, if the first was an incomplete character. */
export const joined = (a, b) => token(a.text + b.text, less(a.sure, b.sure), a.chance === null || b.chance === null ? null : a.chance * b.chance, b.top);
const less = (a, b) => a === null ? b : b === null ? a : Math.min(a, b);

export function element(one) {
  const step = one.sure === null ? STEPS.length : STEPS.filter(bound => one.sure >= bound).length;
  const span = make(`span.t.c${step}`, one.text);
  held.set(span, one);
  return span;
}

/** A token in a sentence. */
export function described(one) {
  const parts = [`“${visible(one.text)}”`];
  if (one.chance !== null) parts.push(`probability ${percent(one.chance)}`);
  if (one.sure !== null) parts.push(`confidence ${percent(one.sure)}`);
  return parts.join(", ");
}

/** The content of the tooltip. */
export function details(one) {
  const line = (text, share, kind) => {
    const bar = make("i");
    bar.style.width = `${Math.max(2, 100 * share)}%`;
    return make(`li${kind}`, make("b", visible(text)), make("span.track", bar), make("em", percent(share)));
  };
  const rows = one.top.some(([text]) => text === one.text) || one.chance === null ? [] : [line(one.text, one.chance, ".this")];
  rows.push(...one.top.slice(0, 5).map(([text, share]) => line(text, share, text === one.text ? ".this" : "")));
  const said = one.sure === null ? null : make("p", "confidence ", make("strong", percent(one.sure)));
  return [said, rows.length ? make("ul", ...rows) : null].filter(Boolean);
}
