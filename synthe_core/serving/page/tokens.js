// Tokens of an answer: one element each, coloured by confidence, with a tooltip.

import { make } from "./dom.js";
import { percent, visible } from "./format.js";

const STEPS = [.15, .3, .5, .7, .9]; // bounds of the colours c0 (low confidence) to c5 (high)
const tokenByElement = new WeakMap();

/** A token: its text, the model's confidence, its probability, and the most likely [text, probability]; null if unknown. */
export const token = (text, confidence = null, probability = null, top = []) => ({ text, confidence, probability, top });
export const tokenOf = element => tokenByElement.get(element);

/** Two tokens as one, if the first was an incomplete character. */
export const joined = (a, b) => token(a.text + b.text, less(a.confidence, b.confidence), a.probability === null || b.probability === null ? null : a.probability * b.probability, b.top);
const less = (a, b) => a === null ? b : b === null ? a : Math.min(a, b);

export function element(one) {
  const step = one.confidence === null ? STEPS.length : STEPS.filter(bound => one.confidence >= bound).length;
  const span = make(`span.t.c${step}`, one.text);
  tokenByElement.set(span, one);
  return span;
}

/** A token in a sentence. */
export function described(one) {
  const parts = [`“${visible(one.text)}”`];
  if (one.probability !== null) parts.push(`probability ${percent(one.probability)}`);
  if (one.confidence !== null) parts.push(`confidence ${percent(one.confidence)}`);
  return parts.join(", ");
}

/** The content of the tooltip. */
export function details(one) {
  const line = (text, share, kind) => {
    const bar = make("i");
    bar.style.width = `${Math.max(2, 100 * share)}%`;
    return make(`li${kind}`, make("b", visible(text)), make("span.track", bar), make("em", percent(share)));
  };
  const rows = one.top.some(([text]) => text === one.text) || one.probability === null ? [] : [line(one.text, one.probability, ".this")];
  rows.push(...one.top.slice(0, 5).map(([text, share]) => line(text, share, text === one.text ? ".this" : "")));
  const confidenceLine = one.confidence === null ? null : make("p", "confidence ", make("strong", percent(one.confidence)));
  return [confidenceLine, rows.length ? make("ul", ...rows) : null].filter(Boolean);
}
