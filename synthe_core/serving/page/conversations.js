// Conversations: their texts in this browser, their states on the server, and the list of both.

import { get, post, remove } from "./api.js";
import { $, announce, loadItem, make, saveItem } from "./dom.js";
import { ago, several } from "./format.js";

// A conversation: {id, title, model, mode, turns, read, sent, used}. A turn: {role, text, tokens, note, fault}.
// read: what the server's session of that id contains, {turns, model, system}; null if unknown. sent: whether the server may have the id.

let all = (loadItem("conversations") ?? []).filter(c => c && typeof c.id === "string" && Array.isArray(c.turns));
let saved = new Map(); // sessions on the server by id
let active = null;
let openListener = () => {};

export const current = () => active;
export const onOpen = listener => { openListener = listener; };
export const isSaved = id => saved.has(id);

function name() {
  return "chat-" + [...crypto.getRandomValues(new Uint8Array(6))].map(b => (b % 36).toString(36)).join("");
}

export function init(id = loadItem("current")) {
  active = all.find(c => c.id === id) ?? blank();
  show();
}

const blank = () => ({ id: name(), title: "", model: "", mode: "", turns: [], read: null, sent: false, used: Date.now() });

/** A conversation's first words, or its id. */
const titleOf = c => c.title || c.turns.find(t => t.text.trim())?.text.trim().replace(/\s+/g, " ").slice(0, 80) || c.id;

export function save(c) {
  c.used = Date.now();
  if (c === active || all.includes(c)) all = [c, ...all.filter(other => other !== c)]; // and not one that was deleted
  store();
  show();
}

function store() {
  const compact = (c, tokens) => ({ ...c, turns: c.turns.map(t => ({ ...t, tokens: tokens && t.tokens?.map(({ text, confidence, probability }) => ({ text, confidence, probability, top: [] })) })) });
  // Where there is no room, colours go first, and then the oldest.
  saveItem("conversations", all.map(c => compact(c, true))) || saveItem("conversations", all.map(c => compact(c, false))) || saveItem("conversations", all.slice(0, 20).map(c => compact(c, false)));
  saveItem("current", active.id);
}

export function open(conversation) {
  active = conversation;
  saveItem("current", active.id);
  show();
  openListener(active);
}

export function newConversation() { open(active.turns.length ? blank() : active); }

/** The sessions on the server; none if it does not respond. */
export async function refresh() {
  try { saved = new Map((await get("api/sessions", { quiet: true })).data.map(s => [s.id, s])); } catch { return; }
  show();
}

export async function deleteSession(id) {
  for (let tries = 0; saved.has(id); tries++) {
    try { await remove(`api/sessions/${encodeURIComponent(id)}`); saved.delete(id); } catch (error) {
      if (error.status === 404) saved.delete(id);
      else if (error.status !== 429 || tries === 20) throw error;
      else await new Promise(resolve => { setTimeout(resolve, 150); }); // an answer that was stopped is still being put away
    }
  }
}

async function deleteConversation(conversation) {
  try { await deleteSession(conversation.id); } catch (error) { announce(error.message); showAlert(error.message); return; }
  const at = all.indexOf(conversation);
  all = all.filter(c => c !== conversation);
  if (active.id === conversation.id) active = all[Math.min(Math.max(at, 0), all.length - 1)] ?? blank();
  store();
  announce("Conversation deleted.");
  open(active);
  ($("sessions").querySelector(".open") ?? $("new")).focus();
}

/** A copy of a conversation; both continue independently. */
async function fork(conversation) {
  const copy = { ...structuredClone(conversation), id: name(), title: `${titleOf(conversation).replace(/ \(fork.*\)$/, "")} (fork)`, used: Date.now() };
  await refresh();
  if (conversation.read && saved.has(conversation.id)) {
    try { await post(`api/sessions/${encodeURIComponent(conversation.id)}/fork`, { to: copy.id }); } catch (error) {
      if (error.status !== 404) { showAlert(error.message); return; }
      copy.read = null;
    }
  } else copy.read = null;
  all = [copy, ...all];
  store();
  await refresh();
  announce("Forked.");
  open(copy);
}

function showAlert(message) {
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
  const server = saved.get(c.id);
  const facts = [c.model, server ? several(server.tokens, "token") : null, ago(c.used)].filter(Boolean).join(" · ");
  const bin = make("button.quiet.icon", icon("delete"), { type: "button", title: "Delete", "aria-label": `Delete ${titleOf(c)}` });
  const arm = on => {
    armed = on ? c.id : "";
    bin.classList.toggle("armed", on);
    bin.replaceChildren(on ? "Delete?" : icon("delete"));
  };
  if (armed === c.id) arm(true);
  bin.addEventListener("click", () => {
    if (armed !== c.id) { arm(true); return; }
    armed = "";
    deleteConversation(c);
  });
  bin.addEventListener("blur", () => { if (armed === c.id && !rendering) arm(false); });
  return make("li",
    make("button.open", make("b", titleOf(c)), make("span", make("i.dot", { title: server ? "state on the server" : "no state on the server: the text is evaluated again when you continue", hidden: !server }), facts), {
      type: "button", onclick: () => open(c), "aria-current": c.id === active.id,
    }),
    make("button.quiet.icon", icon("fork"), { type: "button", title: "Fork", "aria-label": `Fork ${titleOf(c)}`, onclick: () => fork(c) }),
    bin);
}

/** Sessions of other programs or browsers, which are resumed without their text. */
const otherSessions = () => [...saved.values()].filter(s => !all.some(c => c.id === s.id) && s.id !== active.id).map(s => ({
  id: s.id, title: s.id, model: s.model, mode: "", turns: [], read: { turns: 0, model: s.model, system: null }, sent: true, used: s.used * 1000,
}));

addEventListener("storage", event => { // another tab has written
  if (event.key !== "synthe.conversations") return;
  all = (loadItem("conversations") ?? []).map(c => c.id === active.id ? active : c);
  show();
});

let rendered = "", rendering = false;
let armed = ""; // the conversation that the next click on "Delete?" deletes; it stays armed when the list is drawn again
function show() {
  const listed = [...all, ...otherSessions()].sort((a, b) => b.used - a.used);
  const key = JSON.stringify(listed.map(c => [c.id, titleOf(c), c.model, ago(c.used), saved.get(c.id)?.tokens, c.id === active.id]));
  if (key === rendered) return; // nothing is built anew under somebody's finger
  rendered = key;
  const focused = [...$("sessions").querySelectorAll("button")].indexOf(document.activeElement);
  rendering = true;
  $("sessions").replaceChildren(...listed.map(item));
  $("no-sessions").hidden = listed.length > 0;
  if (focused >= 0) $("sessions").querySelectorAll("button")[focused]?.focus();
  rendering = false;
}
