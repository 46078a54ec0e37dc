// Preference pairs and their review, by pointer or keyboard: j and k move, a approves, r rejects, e edits.

import { get, post } from "./api.js";
import { announce, make } from "./dom.js";
import { ago } from "./format.js";

const STATES = ["new", "approved", "rejected", "learned", "refused"];
const SHOWN = 50;
let state = "new", after = 0, next = 0, current = 0, queue = [], list = null, pages = null; // after, next: the ids before this page and the next one

export async function show(holder) {
  const choice = make("select", ...STATES.map(name => make("option", name, { value: name })), { "aria-label": "State of the pairs", value: state });
  choice.value = state;
  choice.addEventListener("change", () => { state = choice.value; after = current = 0; load(); });
  list = make("ol.pairs", { "aria-label": "Pairs" });
  pages = make("p.actions", { role: "group", "aria-label": "Pages" });
  holder.replaceChildren(make("div.bar", make("label.pick", make("span", "Show"), choice), make("span.keyhelp", ...keyHelp())), list, pages);
  await load();
}

const keyHelp = () => [["j", "next"], ["k", "previous"], ["a", "approve"], ["r", "reject"], ["e", "edit"]].flatMap(([key, does]) => [make("kbd", key), ` ${does} `]);

async function load() {
  try { ({ data: queue } = await get(`api/swarm/pairs?state=${state}&after=${after}&limit=${SHOWN + 1}`)); } catch (error) { list.replaceChildren(make("li.bad", error.message, { role: "alert" })); return; }
  if (!queue.length && after) { after = 0; await load(); return; }
  next = queue.length > SHOWN ? queue[SHOWN - 1].id : 0;
  queue = queue.slice(0, SHOWN);
  draw();
}

async function turn(to) {
  after = to;
  current = 0;
  await load();
  select(0);
}

function draw() {
  current = Math.max(0, Math.min(current, queue.length - 1));
  list.replaceChildren(...queue.length ? queue.map(item) : [make("li.nothing", state === "new" ? "Nothing to review. Corrections, and answers of a tutor, come here." : `No pair is ${state}.`)]);
  const button = (label, to) => make("button", label, { type: "button", onclick: () => turn(to) });
  pages.replaceChildren(...after ? [button("From the oldest", 0)] : [], ...next ? [button("Later pairs", next)] : []);
}

function item(pair, index) {
  const fault = make("p.bad", { role: "alert", hidden: true });
  const reviews = pair.state !== "learned";
  const text = make("textarea", { rows: 5, value: pair.chosen, maxLength: 100000, "aria-label": "The better answer" });
  const chosen = make("p.text", pair.chosen);
  const form = make("form.correction", text, make("p.actions", make("button.main", "Approve this", { type: "submit" }), make("button", "Cancel", { type: "button", onclick: () => edit(false) })));
  form.hidden = true;
  const edit = on => { form.hidden = !on; chosen.hidden = on; if (on) text.focus(); else element.focus(); };
  form.addEventListener("submit", event => { event.preventDefault(); if (text.value.trim()) decide("approved", text.value); });
  const decide = async (decision, edited) => {
    try { await post(`api/swarm/pairs/${pair.id}`, { state: decision, ...(edited !== undefined && edited !== pair.chosen ? { chosen: edited } : {}) }); } catch (error) { fault.textContent = error.message; fault.hidden = false; return; }
    announce(`Pair ${pair.id} ${decision}.`);
    queue = queue.filter(each => each !== pair);
    draw();
    select(current);
    if (!queue.length) await load();
  };
  const button = (label, key, onclick) => make("button", label, { type: "button", onclick, title: `${label} (${key})` });
  const element = make("li.review", make("p.note", `pair ${pair.id} · ${pair.specialist} · ${pair.source} · ${ago(1000 * pair.created)}${pair.conflicts_with === null ? "" : ` · contradicts pair ${pair.conflicts_with}`}`),
    side("Request", make("p.text", pair.prompt)), make("div.sides", side("Better", chosen, form), side("Worse", make("p.text", pair.rejected))),
    reviews ? make("p.actions", button("Approve", "a", () => decide("approved")), button("Reject", "r", () => decide("rejected")), button("Edit", "e", () => edit(true))) : null, fault,
    { tabIndex: index === current ? 0 : -1, "aria-label": `Pair ${pair.id}` });
  element.addEventListener("focusin", () => mark(index));
  Object.assign(element, { decide: reviews ? decide : null, edit: reviews ? edit : null });
  return element;
}

const side = (title, ...content) => make("div.side", make("h3", title), ...content);

function mark(index) {
  current = index;
  [...list.children].forEach((each, i) => { each.tabIndex = i === current ? 0 : -1; each.classList.toggle("at", i === current); });
}

function select(index) {
  if (!queue.length) return;
  mark(Math.max(0, Math.min(queue.length - 1, index)));
  list.children[current].focus();
  list.children[current].scrollIntoView({ block: "nearest" });
}

/** j, k, a, r and e; whether the key was one of them. */
export function key(event) {
  const at = list?.children[current], begun = list?.contains(document.activeElement);
  switch (event.key) {
    case "j": select(begun ? current + 1 : current); return true;
    case "k": select(begun ? current - 1 : current); return true;
    case "a": at?.decide?.("approved"); return true;
    case "r": at?.decide?.("rejected"); return true;
    case "e": at?.edit?.(true); return true;
    default: return false;
  }
}

/** Esc leaves the text that is edited, Ctrl Enter approves it. */
export function typing(event) {
  const at = list?.children[current];
  if (event.key !== "Escape" || !at?.contains(event.target)) return false;
  at.edit?.(false);
  return true;
}
