// Sampling settings, the system prompt and the name of the user, saved in this browser.

import { $, loadItem, saveItem } from "./dom.js";

const DEFAULTS = { user: "", system: "", temperature: 0.8, top_p: 0.95, max_tokens: 400, seed: "", tint: true };
const LASTING = ["user", "tint"]; // which "Reset" leaves alone
const SLIDERS = ["temperature", "top_p"];
const values = { ...DEFAULTS, ...loadItem("settings") };

const labels = { temperature: v => v === 0 ? "0 (greedy)" : v.toFixed(2), top_p: v => v === 1 ? "all" : v.toFixed(2) };

function show() {
  for (const name of Object.keys(DEFAULTS)) {
    const input = $(name);
    if (input.type === "checkbox") input.checked = values[name];
    else if (document.activeElement !== input) input.value = values[name];
  }
  for (const name of SLIDERS) $(`${name}-is`).textContent = labels[name](values[name]);
  $("defaults").hidden = Object.keys(DEFAULTS).every(name => LASTING.includes(name) || values[name] === DEFAULTS[name]);
  document.body.classList.toggle("tinted", values.tint);
  $("legend").hidden = !values.tint;
}

function read(input) {
  if (input.type === "checkbox") return input.checked;
  if (input.id === "system" || input.id === "user") return input.value;
  if (input.id === "seed" && input.value === "") return "";
  const number = Number(input.value);
  return input.value !== "" && input.validity.valid ? number : values[input.id];
}

export function init() {
  for (const name of Object.keys(DEFAULTS)) {
    $(name).addEventListener("input", () => { values[name] = read($(name)); saveItem("settings", values); show(); });
    $(name).addEventListener("blur", show); // an invalid value is replaced by the current one
  }
  $("defaults").addEventListener("click", () => { Object.assign(values, DEFAULTS, Object.fromEntries(LASTING.map(name => [name, values[name]]))); saveItem("settings", values); show(); $("system").focus(); });
  show();
}

/** The request fields that the settings determine. */
export function sampling() {
  const { temperature, top_p, max_tokens, seed } = values;
  return { temperature, top_p, max_tokens, seed: seed === "" ? Math.floor(Math.random() * 2 ** 32) : seed };
}

export const system = () => values.system.trim();
/** Whose facts a swarm uses and learns; "" for nobody in particular. */
export const user = () => values.user.trim();
