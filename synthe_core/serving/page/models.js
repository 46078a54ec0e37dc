// The served models and their adapters, and the mode: chat or text.

import { get } from "./api.js";
import { $, loadItem, make, saveItem } from "./dom.js";

const listeners = [];
let served = new Map(); // name: {adapters: [name], chat: whether it has a chat template, swarm: whether a swarm answers}
let mode = null; // the mode chosen by the user; null: the default of the model

export const onModel = listener => listeners.push(listener);
export const isServed = name => served.has(name.split(":")[0]);

/** `base` or `base:adapter`; "" until the server has responded. */
export function chosen() {
  const base = $("model").value, adapter = $("adapter").value;
  return served.has(base) ? base + (adapter && served.get(base).adapters.includes(adapter) ? `:${adapter}` : "") : "";
}

export const isSwarm = name => served.get(name)?.swarm ?? false;
/** The names of the swarm's specialists; none if no swarm is served. */
export const specialists = () => [...served.keys()].filter(name => isSwarm(name) && name !== "swarm");
export const hasSwarm = () => [...served.values()].some(model => model.swarm);

export const hasChatTemplate = () => isSwarm($("model").value) || (served.get($("model").value)?.chat ?? false);
export const chatting = () => isSwarm($("model").value) || (mode ?? (hasChatTemplate() ? "chat" : "text")) === "chat";

function show(notify = true) {
  const model = served.get($("model").value);
  const before = $("adapter").value;
  $("adapter").replaceChildren(make("option", "base", { value: "" }), ...(model?.adapters ?? []).map(name => make("option", name, { value: name })));
  $("adapter").value = model?.adapters.includes(before) ? before : "";
  $("adapter-pick").hidden = !model?.adapters.length;
  for (const button of $("mode").children) button.setAttribute("aria-pressed", (button.dataset.mode === "chat") === chatting());
  $("system-field").hidden = !chatting();
  $("mode").hidden = $("tint-field").hidden = isSwarm($("model").value); // a swarm chats, and says its confidence below each answer
  $("user-field").hidden = !hasSwarm();
  if (notify) for (const listener of listeners) listener();
}

/** Selects a model (and adapter) if it is served. */
export function choose(name) {
  const [base, adapter = ""] = name.split(":");
  if (!served.has(base)) return;
  $("model").value = base;
  show(false);
  $("adapter").value = served.get(base).adapters.includes(adapter) ? adapter : "";
}

export function setMode(newMode) { mode = newMode; show(false); }

/** Loads the list of models; throws ApiError. */
export async function load() {
  const { data } = await get("v1/models");
  const models = new Map();
  for (const entry of data) {
    const [base, adapter] = entry.id.split(":");
    if (!models.has(base)) models.set(base, { adapters: [], chat: Boolean(entry.synthe?.chat_template), swarm: Boolean(entry.synthe?.swarm) });
    if (adapter) models.get(base).adapters.push(adapter);
  }
  served = models;
  const now = chosen() || loadItem("model") || "";
  $("model").replaceChildren(...[...models.keys()].map(name => make("option", name, { value: name })));
  $("model").disabled = models.size === 0;
  if (models.size) { $("model").value = [...models.keys()][0]; choose(now); }
  else $("model").append(make("option", "no models"));
  show();
}

export function init() {
  $("model").addEventListener("change", () => { show(); saveItem("model", chosen()); });
  $("adapter").addEventListener("change", () => { saveItem("model", chosen()); for (const listener of listeners) listener(); });
  $("mode").addEventListener("click", event => {
    const button = event.target.closest("button");
    if (button) { mode = button.dataset.mode; show(); }
  });
}
