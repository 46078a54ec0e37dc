// Light and dark, and the colours that canvases are painted with; the same ramps as the pages of `synthe introspect`.

import { $, loadItem, saveItem } from "./dom.js";

const HUES = { stream: [215, 12], gates: [186, 45], routing: [34, 62], memory: [212, 58], confidence: [268, 38], depth: [140, 34] };
const preferred = matchMedia("(prefers-color-scheme: dark)");
const listeners = [];
let dark = false;
let ramps = {};

function hsl(h, s, l) {
  const a = s / 100 * Math.min(l, 100 - l) / 100;
  const f = n => { const k = (n + h / 30) % 12; return Math.round(255 * (l / 100 - a * Math.max(-1, Math.min(k - 3, 9 - k, 1)))); };
  return [f(0), f(8), f(4)];
}

function applyTheme(isDark) {
  dark = isDark;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").setAttribute("aria-pressed", dark);
  ramps = {};
  for (const [group, [hue, chroma]] of Object.entries(HUES)) {
    ramps[group] = Array.from({ length: 256 }, (_, i) => {
      const t = i / 255;
      return dark ? hsl(hue, chroma * (.35 + .65 * t), 15 + 63 * Math.pow(t, .9)) : hsl(hue, chroma * (.35 + .75 * t), 95 - 61 * Math.pow(t, .9));
    });
  }
  ramps.choice = Array.from({ length: 256 }, (_, i) => hsl((i * 137.5 + 205) % 360, dark ? 30 : 34, (dark ? 58 : 64) - 9 * (i % 3)));
  for (const listener of listeners) listener();
}

/** 256 colours [r, g, b] of a group of figures, from little to much; of "choice", one a choice. */
export const ramp = group => ramps[group] || ramps.stream;
export const empty = () => dark ? [30, 35, 41] : [241, 239, 234];
export const onTheme = listener => listeners.push(listener);

export function init() {
  const chosen = loadItem("theme");
  applyTheme(chosen ? chosen === "dark" : preferred.matches);
  preferred.addEventListener("change", () => { if (!loadItem("theme")) applyTheme(preferred.matches); });
  $("theme").addEventListener("click", () => {
    applyTheme(!dark);
    saveItem("theme", dark === preferred.matches ? null : dark ? "dark" : "light"); // null: the theme of the system
  });
}
