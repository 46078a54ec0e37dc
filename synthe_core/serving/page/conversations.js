// Conversations: their texts in this browser, their states on the server, and the list of both.

import { get, post, remove } from "./api.js";
import { $, ago, keep, make, recall, say, several } from "./words.js";

// A conversation: {id, title, model, mode, turns, read, sent, used}. A turn: {role, text, tokens, note, fault}.
// read: what the server's session of that id contains, {turns, model, system}; null if unknown. sent: whether the server may have the id.

let all = (recall("conversations") ?? []).filter(c => c && typeof c.id === "string" && Array.isArray(c.turns));
let kept = new Map(); // sessions on the server by id
let now = null;
let opened = () => {};

export const current = () => now;
export const onOpen = listener => { opened = listener; };
export const isKept = id => kept.has(id);

function name() {
  return "chat-" + [...crypto.getRandomValues(new Uint8Array(6))].map(b => (b % 36).toString(36)).join("");
}

export function begin(id = recall("current")) {
  now = all.find(c => c.id === id) ?? blank();
  show();
}

const blank = () => ({ id: name(), title: "", model: "", mode: "", turns: [], read: null, sent: false, used: Date.now() });

/** A conversation's first words, or its id. */
const titled = c => c.title || c.turns.find(t => t.text.trim())?.text.trim().replace(/\s+/g, " ").slice(0, 80) || c.id;

export function save(c) {
  c.used = Date.now();
  if (c === now || all.includes(c)) all = [c, ...all.filter(other => other !== c)]; // and not one that was deleted
  store();
  show();
}

function store() {
  const lean = (c, tokens) => ({ ...c, turns: c.turns.map(t => ({ ...t, tokens: tokens && t.tokens?.map(({ text, sure, chance }) => ({ text, sure, chance, top: [] })) })) });
  // Where there is no room, colours go first, and then the oldest.
  keep("conversations", all.map(c => lean(c, true))) || keep("conversations", all.map(c => lean(c, false))) || keep("conversations", all.slice(0, 20).map(c => lean(c, false)));
  keep("current", now.id);
}

export function open(conversation) {
  now = conversation;
  keep("current", now.id);
  show();
  opened(now);
}

export function fresh() { open(now.turns.length ? blank() : now); }

/** The sessions on the server; none if it does not respond. */
export async function refresh() {
  try { kept = new Map((await get("api/sessions", { quiet: true })).data.map(s => [s.id, s])); } catch { return; }
  show();
}

export async function forget(id) {
  for (let tries = 0; kept.has(id); tries++) {
    try { await remove(`api/sessions/${encodeURIComponent(id)}`); kept.delete(id); } catch (error) {
      if (error.status === 404) kept.delete(id);
      else if (error.status !== 429 || tries === 20) throw error;
      else await new Promise(resolve => { setTimeout(resolve, 150); }); // an answer that was stopped is still being put away
    }
  }
}

async function erase(conversation) {
  try { await forget(conversation.id); } catch (error) { say(error.message); alertIn(error.message); return; }
  const at = all.indexOf(conversation);
  all = all.filter(c => c !== conversation);
  if (now.id === conversation.id) now = all[Math.min(Math.max(at, 0), all.length - 1)] ?? blank();
  store();
  say("Conversation deleted.");
  open(now);
  ($("sessions").querySelector(".open") ?? $("new")).focus();
}

/** A copy of a conversation; both continue independently. */
async function fork(conversation) {
  const copy = { ...structuredClone(conversation), id: name(), title: `${titled(conversation).replace(/ \(fork.*\)$/, "")} (fork)`, used: Date.now() };
  await refresh();
  if (conversation.read && kept.has(conversation.id)) {
    try { await post(`api/sessions/${encodeURIComponent(conversation.id)}/fork`, { to: copy.id }); } catch (error) {
      if (error.status !== 404) { alertIn(error.message); return; }
      copy.read = null;
    }
  } else copy.read = null;
  all = [copy, ...all];
  store();
  await refresh();
  say("Forked.");
  open(copy);
}

function alertIn(message) {
  const line = make("li.bad", message, { role: "alert" });
  $("sessions").prepend(line);
  setTimeout(() => line.remove(), 6000);
}

const ICONS = {
  fork: "M5 3.5v5a4 4 0 0 0 4 4h5m-3-3 3 3-3 3M5 8.5v8",
  delete: "M4 5.5h12M8 5.5v-2h4v2m-6.500 0 .7 11h7.600l.7-11",
};

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"), path = document.createElementNS(svg.namespaceURI, "path");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

function item(c) {
  const server = kept.get(c.id);
  const facts = [c.model, server ? several(server.tokens, "token") : null, ago(c.used)].filter(Boolean).join(" · ");
  const bin = make("button.quiet.icon", icon("delete"), { type: "button", title: "Delete", "aria-label": `Delete ${titled(c)}` });
  bin.addEventListener("click", () => {
    if (bin.classList.contains("armed")) { erase(c); return; }
    bin.classList.add("armed");
    bin.replaceChildren("Delete?");
  });
  bin.addEventListener("blur", () => { if (bin.classList.contains("armed")) { bin.classList.remove("armed"); bin.replaceChildren(icon("delete")); } });
  return make("li",
    make("button.open", make("b", titled(c)), make("span", make("i.dot", { title: server ? "state on the server" : "no state on the server: the text is evaluated again when you continue", hidden: !server }), facts), {
      type: "button", onclick: () => open(c), "aria-current": c.id === now.id,
    }),
    make("button.quiet.icon", icon("fork"), { type: "button", title: "Fork", "aria-label": `Fork ${titled(c)}`, onclick: () => fork(c) }),
    bin);
}

/** Sessions of other programs or browsers, which are resumed without their text. */
const strangers = () => [...kept.values()].filter(s => !all.some(c => c.id === s.id) && s.id !== now.id).map(s => ({
  id: s.id, title: s.id, model: s.model, mode: "", turns: [], read: { turns: 0, model: s.model, system: null }, sent: true, used: s.used * 1000,
}));

addEventListener("storage", event => { // another tab has written
  if (event.key !== "synthe.conversations") return;
  all = (recall("conversations") ?? []).map(c => c.id === now.id ? now : c);
  show();
});

let drawn = "";
function show() {
  const listed = [...all, ...strangers()].sort((a, b) => b.used - a.used);
  const picture = JSON.stringify(listed.map(c => [c.id, titled(c), c.model, ago(c.used), kept.get(c.id)?.tokens, c.id === now.id]));
  if (picture === drawn) return; // nothing is built anew under somebody's finger
  drawn = picture;
  const focused = [...$("sessions").querySelectorAll("button")].indexOf(document.activeElement);
  $("sessions").replaceChildren(...listed.map(item));
  $("no-sessions").hidden = listed.length > 0;
  if (focused >= 0) $("sessions").querySelectorAll("button")[focused]?.focus();
}
