// The view of the swarm: its tabs, of which one is shown, and what is read from the server while it is open.

import { get } from "./api.js";
import { $, make } from "./dom.js";
import * as knowledge from "./knowledge.js";
import * as learning from "./learning.js";
import * as models from "./models.js";
import * as pairs from "./pairs.js";
import * as pathways from "./pathways.js";
import * as specialists from "./specialists.js";

const PAUSE = 5000;
const VIEWS = {
  specialists: { label: "Specialists", module: specialists, role: "user" },
  pathways: { label: "Pathways", module: pathways, role: "user" },
  knowledge: { label: "Knowledge", module: knowledge, role: "user" },
  pairs: { label: "Pairs", module: pairs, role: "reviewer" },
  learning: { label: "Learning", module: learning, role: "reviewer" },
};
const ROLES = ["user", "reviewer", "admin"];
let view = "specialists", status = null, shown = "", timer = 0, drawn = 0;

const isOpen = () => document.body.dataset.pane === "swarm";
const may = role => ROLES.indexOf(status.role) >= ROLES.indexOf(role);
const allowed = () => Object.keys(VIEWS).filter(name => may(VIEWS[name].role));

/** Whether the page was opened at a view of the swarm. */
export const isLinked = () => /^#swarm(\/|$)/.test(location.hash);

/** Shows the view that was chosen last. */
export async function open() {
  const linked = location.hash.split("/")[1];
  if (isLinked() && linked in VIEWS) view = linked;
  history.replaceState(null, "", `#swarm/${view}`);
  shown = "";
  await refresh();
}

export function close() {
  clearTimeout(timer);
  if (isLinked()) history.replaceState(null, "", location.pathname);
}

/** Reads the status again, and shows what has changed. */
async function refresh() {
  clearTimeout(timer);
  try { status = await get("api/swarm"); } catch (error) {
    if (!shown) $("view").replaceChildren(make("p.bad", error.message, { role: "alert" }), make("button", "Try again", { type: "button", onclick: refresh }));
    if (isOpen()) timer = setTimeout(poll, PAUSE);
    return;
  }
  if (!isOpen()) return;
  if (!allowed().includes(view)) view = "specialists";
  const key = view + JSON.stringify(status);
  const reading = $("view").contains(document.activeElement) && $("view") !== document.activeElement;
  if (key !== shown && !(shown && reading)) { shown = key; await draw(); } // nothing is drawn anew under somebody's finger
  timer = setTimeout(poll, PAUSE);
}

function poll() {
  if (document.hidden) timer = setTimeout(poll, PAUSE);
  else refresh();
}

async function draw() {
  $("views").replaceChildren(...allowed().map(name => make("button", VIEWS[name].label, newPairs(name), { type: "button", "aria-pressed": name === view, "data-view": name })));
  const turn = ++drawn, holder = make("div.view", { "aria-busy": true });
  const before = $("view").querySelector(".view");
  if (before?.dataset.view !== view) $("view").replaceChildren(holder);
  holder.dataset.view = view;
  try {
    await VIEWS[view].module.show(holder, { status, may, refresh: async () => { shown = ""; await refresh(); } });
  } catch (error) { holder.replaceChildren(make("p.bad", error.message, { role: "alert" })); }
  holder.setAttribute("aria-busy", "false");
  if (turn !== drawn) return;
  const isFocused = $("view").contains(document.activeElement);
  if (holder.parentElement !== $("view")) {
    const top = $("view").scrollTop; // drawings get their size a frame later
    $("view").replaceChildren(holder);
    requestAnimationFrame(() => { $("view").scrollTop = top; });
  }
  if (isFocused && !$("view").contains(document.activeElement)) $("view").focus();
}

function newPairs(name) {
  const count = name === "pairs" ? status.specialists.reduce((sum, each) => sum + (each.pairs?.new ?? 0), 0) : 0;
  return count ? make("span.count", `${count}`, { "aria-label": ` ${count} to review` }) : null;
}

async function choose(name) {
  view = name;
  history.replaceState(null, "", `#swarm/${view}`);
  shown = "";
  $("view").scrollTop = 0;
  await refresh();
}

/** What the keyboard does while the view is open; whether it did something. */
export function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !status) return false;
  if (/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return VIEWS[view].module.typing?.(event) ?? false;
  const number = Number(event.key);
  if (number >= 1 && allowed()[number - 1]) { choose(allowed()[number - 1]).then(() => $("views").querySelector("[aria-pressed=true]")?.focus()); return true; }
  if (event.key === "/") { choose("knowledge").then(() => knowledge.focus()); return true; }
  return VIEWS[view].module.key?.(event) ?? false;
}

export function init() {
  models.onModel(() => { $("swarm-open").hidden = !models.hasSwarm(); });
  $("views").addEventListener("click", async event => {
    const name = event.target.closest("button")?.dataset.view;
    if (name) { await choose(name); $("views").querySelector("[aria-pressed=true]")?.focus(); }
  });
}
