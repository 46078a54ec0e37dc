// The page: its parts put together, the message box, the key, and what the keyboard does.

import * as api from "./api.js";
import * as chat from "./chat.js";
import * as contradictions from "./contradictions.js";
import * as conversations from "./conversations.js";
import { $, make } from "./dom.js";
import * as inspection from "./inspection.js";
import * as models from "./models.js";
import * as selection from "./selection.js";
import * as settings from "./settings.js";
import * as status from "./status.js";
import * as swarm from "./swarm.js";
import * as theme from "./theme.js";

const touch = matchMedia("(pointer: coarse)");
const box = $("prompt");

// The message box

function fit() {
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight + 2, innerHeight * .4)}px`;
  const c = conversations.current();
  $("send").disabled = !models.chosen() || (box.value === "" && (models.chatting() || !(c.turns.length || c.read)));
}

function explain() {
  const c = conversations.current(), chatting = models.chatting();
  box.placeholder = chatting ? "Type a message" : c.turns.length ? "Add text, or continue" : "Start a text";
  $("send").textContent = chatting ? "Send" : "Continue";
  $("how").textContent = touch.matches ? "" : chatting ? "Enter: send, Shift Enter: new line, Esc: stop" : "Ctrl Enter: continue, Esc: stop";
  if (!c.turns.length) chat.show(c);
  fit();
}

function submit() {
  if ($("send").disabled || !chat.send(box.value)) return;
  box.value = "";
  explain();
}

box.addEventListener("input", fit);
box.addEventListener("keydown", event => {
  if (event.key !== "Enter" || event.isComposing || event.shiftKey || event.altKey) return;
  if (event.ctrlKey || event.metaKey || (models.chatting() && !touch.matches)) { event.preventDefault(); submit(); }
});
$("composer").addEventListener("submit", event => { event.preventDefault(); submit(); });
$("stop").addEventListener("click", chat.stop);

// Panes, which a phone shows one of

function show(pane) {
  const before = document.body.dataset.pane;
  document.body.dataset.pane = pane;
  for (const button of document.querySelectorAll(".panes button")) button.setAttribute("aria-pressed", button.dataset.pane === pane);
  if (pane === "swarm") swarm.open();
  else if (before === "swarm") swarm.close();
}
document.querySelector(".panes").addEventListener("click", event => { if (event.target.dataset.pane) show(event.target.dataset.pane); });

/** Shows the view of the swarm that the address names, if one is served. */
function followLink() { if (swarm.isLinked() && models.hasSwarm()) show("swarm"); }

document.querySelector(".skip").addEventListener("click", () => show("chat"));

function newConversation() { chat.stop(); conversations.newConversation(); box.focus(); }
$("new").addEventListener("click", newConversation);
conversations.onOpen(c => {
  chat.stop();
  if (c.model) models.choose(c.model);
  models.setMode(c.mode || null);
  chat.show(c);
  $("scroll").scrollTop = $("scroll").scrollHeight;
  show("chat");
  explain();
});

// The key

api.onKeyRequired(rejected => new Promise(resolve => {
  $("wrong").hidden = !rejected;
  $("key").value = "";
  $("lock").returnValue = "";
  $("lock").showModal();
  $("lock").addEventListener("close", () => resolve($("lock").returnValue === "yes" && $("key").value ? $("key").value : null), { once: true });
}));
$("no-key").addEventListener("click", () => $("lock").close("no"));

// The keyboard

const help = () => $("help").showModal();
$("help-open").addEventListener("click", help);
addEventListener("keydown", event => {
  if (document.querySelector("dialog[open]")) return;
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
  if (event.key === "Escape" && chat.busy()) { event.preventDefault(); chat.stop(); box.focus(); }
  else if (event.altKey && event.code === "KeyN") { event.preventDefault(); newConversation(); }
  else if (event.altKey && event.code === "KeyS" && models.hasSwarm()) { event.preventDefault(); show(document.body.dataset.pane === "swarm" ? "chat" : "swarm"); }
  else if (document.body.dataset.pane === "swarm" && swarm.key(event)) event.preventDefault();
  else if (event.key === "/" && !typing) { event.preventDefault(); show("chat"); box.focus(); }
  else if (event.key === "?" && !typing) { event.preventDefault(); help(); }
});

// Beginning

async function load() {
  try {
    await models.load();
    await conversations.refresh();
    status.poll();
  } catch (error) {
    const retry = make("button", "Try again", { type: "button", onclick: load });
    $("log").replaceChildren(make("div.empty", make("h3", "The server is not available"), make("p", error.message), make("p.first", retry)));
  }
}

theme.init();
settings.init();
models.init();
models.onModel(explain);
selection.init();
inspection.init();
contradictions.init();
chat.init();
conversations.init();
swarm.init();
models.setMode(conversations.current().mode || null);
chat.show();
explain();
status.init();
load().then(() => {
  const c = conversations.current();
  if (c.model) models.choose(c.model);
  models.setMode(c.mode || null);
  explain();
  $("scroll").scrollTop = $("scroll").scrollHeight;
  followLink();
});
addEventListener("hashchange", followLink);
if (!touch.matches) box.focus();
