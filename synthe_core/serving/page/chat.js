// The conversation: its messages, and the requests that continue it.

import { ApiError, stream } from "./api.js";
import * as attribution from "./attribution.js";
import * as conversations from "./conversations.js";
import { marked } from "./contradictions.js";
import { $, announce, make } from "./dom.js";
import { count, percent, rate } from "./format.js";
import { inspectButton } from "./inspection.js";
import * as models from "./models.js";
import { sampling, system } from "./settings.js";
import { element, joined, token } from "./tokens.js";

const TOP = 5; // most likely tokens requested for each output token
let controller = null; // cancels the answer that is being generated

export const busy = () => controller !== null;
export const stop = () => controller?.abort();

// The tokens in the chunks of a stream, chat or text.

/** The new token of a chunk, or null. Several tokens that only together are text count as one. */
function parseToken(event) {
  const [choice] = event.choices, logprobs = choice.logprobs;
  const text = choice.text ?? choice.delta?.content ?? "", confidence = event.synthe?.confidence ?? null;
  const values = (logprobs?.content?.map(t => t.logprob) ?? logprobs?.token_logprobs ?? []).filter(l => l !== null);
  if (!text && !values.length) return null;
  const tops = logprobs?.content ? logprobs.content.map(t => t.top_logprobs.map(o => [o.token, o.logprob])) : (logprobs?.top_logprobs ?? []).map(top => Object.entries(top ?? {}));
  const top = tops.length === 1 ? tops[0].map(([t, l]) => [t, Math.exp(l)]).sort((a, b) => b[1] - a[1]) : [];
  return token(text, confidence, values.length ? Math.exp(values.reduce((a, b) => a + b)) : null, top);
}

/** The path and body of the request that continues `c`, and whether it sends the earlier turns too. */
function requestFor(c, chat, model) {
  if (models.isSwarm(model)) return attribution.requestTo(model, c.turns.slice(0, -1), c.id);
  const past = c.turns.slice(0, -1), words = system();
  const resumes = c.read && c.read.model === model && conversations.isSaved(c.id) && (c.read.system === null || !chat || c.read.system === words) && c.read.turns < past.length;
  const newTurns = resumes ? past.slice(c.read.turns) : past;
  const common = { model, session: c.id, ...sampling(), confidence: true, stream_options: { include_usage: true } };
  if (!chat) return { path: "v1/completions", resumes, body: { ...common, prompt: newTurns.map(t => t.text).join(""), logprobs: TOP } };
  const messages = newTurns.map(({ role, text }) => ({ role, content: text }));
  if (!resumes && words) messages.unshift({ role: "system", content: words });
  return { path: "v1/chat/completions", resumes, body: { ...common, messages, logprobs: true, top_logprobs: TOP } };
}

/** Sends the typed text; "" continues the text so far. */
export function send(text) {
  const c = conversations.current();
  if (busy() || !models.chosen() || (text === "" && (models.chatting() || !(c.turns.length || c.read)))) return false;
  c.mode = models.chatting() ? "chat" : "text";
  if (text !== "") c.turns.push({ role: "user", text });
  answer(c);
  return true;
}

/** Generates the last answer again. */
export function regenerate() {
  const c = conversations.current();
  if (busy() || !c.turns.length) return;
  if (c.turns.at(-1).role === "assistant") c.turns.pop();
  c.read = null; // the session has read what is now gone
  answer(c);
}

async function answer(c) {
  const chat = models.chatting(), model = models.chosen();
  const turn = { role: "assistant", text: "", tokens: [], note: null, fault: null };
  c.turns.push(turn);
  c.model = model;
  controller = new AbortController();
  working(true);
  conversations.save(c);
  show(c);
  scrollToEnd(true);
  const began = performance.now();
  let first = null, usage = null, ended = null, partial = null;
  try {
    if (c.sent) await conversations.refresh(); // what the server remembers at this moment
    let { path, resumes, body } = requestFor(c, chat, model);
    if (!resumes) await conversations.deleteSession(c.id);
    c.sent = true;
    const read = async () => {
      for await (const event of stream(path, body, controller.signal)) {
        usage = event.usage ?? usage;
        const choice = event.choices?.[0];
        if (!choice) continue;
        attribution.take(turn, event.synthe, () => draftsOf(turn));
        ended = choice.finish_reason ?? ended;
        const one = parseToken(event);
        if (!one) continue;
        first ??= performance.now();
        const whole = partial ? joined(partial, one) : one;
        partial = whole.text ? null : whole;
        if (whole.text) append(turn, whole);
      }
    };
    try { await read(); } catch (error) {
      if (error.status !== 404 || !resumes || first) throw error; // the server has forgotten the session: from the beginning
      c.read = null;
      ({ path, resumes, body } = requestFor(c, chat, model));
      await read();
    }
    c.read = models.isSwarm(model) ? null : { turns: c.turns.length, model, system: chat ? system() : null };
  } catch (error) {
    c.read = null; // how far the server has read cannot be known
    if (error.name === "AbortError") ended = "stopped";
    else turn.fault = { message: error.message, retry: error instanceof ApiError ? error.retry : null };
  }
  const seconds = (performance.now() - (first ?? began)) / 1000;
  turn.note = {
    tokens: usage?.completion_tokens ?? turn.tokens.length, ended, prompt: usage?.prompt_tokens ?? null,
    cached: usage?.prompt_tokens_details?.cached_tokens ?? null, wait: first && (first - began) / 1000, rate: turn.tokens.length > 2 ? (turn.tokens.length - 1) / seconds : null,
  };
  controller = null;
  working(false);
  if (conversations.current() === c) finish(c, turn);
  conversations.save(c);
  conversations.refresh();
  announce(turn.fault ? turn.fault.message : ended === "stopped" ? "Stopped." : `Answered, ${turn.note.tokens} tokens.`);
}

function working(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
  $("log").setAttribute("aria-busy", is);
  if (is && document.activeElement === $("send")) $("stop").focus();
  if (!is && document.activeElement === document.body) $("prompt").focus({ preventScroll: true });
}

// What is shown

let bodies = new Map(); // turn: the element that holds its text

/** Where the drafts of an answer that several write are shown while nobody has answered yet; null if it is not on the page. */
function draftsOf(turn) {
  const body = bodies.get(turn);
  if (!body || turn.text) return null;
  let holder = body.parentElement.querySelector(".drafts");
  if (!holder) { holder = make("div.drafts", { "aria-hidden": true }); body.after(holder); }
  scrollToEnd();
  return holder;
}

function append(turn, one) {
  turn.text += one.text;
  turn.tokens.push(one);
  const body = bodies.get(turn);
  if (!body) return; // another conversation is open
  body.classList.remove("waiting");
  body.parentElement.querySelector(".drafts")?.remove();
  body.append(element(one));
  scrollToEnd();
}

function fill(body, turn) {
  if (turn.swarm?.by) body.replaceChildren(...marked(turn.tokens?.length ? turn.tokens : [token(turn.text)], turn.swarm.contradictions));
  else if (turn.tokens?.length) body.replaceChildren(...turn.tokens.map(element));
  else body.textContent = turn.text;
}

/** Below a swarm's answer: who gave it, and what a user says of it. */
function addCredit(c, turn) {
  const body = bodies.get(turn);
  if (!turn.swarm?.by || !body || c.mode === "text") return;
  body.parentElement.querySelector(".drafts")?.remove();
  body.parentElement.querySelector(".credit")?.remove();
  body.after(attribution.credit(turn, () => conversations.save(c)));
}

function renderTurn(turn) {
  const flow = conversations.current().mode === "text";
  const body = make(flow ? "span.body" : "div.body");
  fill(body, turn);
  if (turn.role === "assistant") {
    body.tabIndex = 0;
    body.setAttribute("aria-label", "Answer; arrow keys move through its tokens");
    body.setAttribute("role", "group");
  }
  bodies.set(turn, body);
  return body;
}

export function show(c = conversations.current()) {
  bodies = new Map();
  const log = $("log");
  log.classList.toggle("text", c.mode === "text");
  if (!c.turns.length) { log.replaceChildren(placeholder(c)); return; }
  if (c.mode === "text") {
    const page = make("article.page", ...c.turns.map(turn => { const body = renderTurn(turn); body.classList.add(turn.role); return body; }));
    log.replaceChildren(page);
  } else {
    log.replaceChildren(...c.turns.map(turn => make(`article.turn.${turn.role}`, make("h3.who", turn.role === "user" ? "You" : c.model || "Answer"), renderTurn(turn))));
  }
  const last = c.turns.at(-1);
  for (const turn of c.turns) addCredit(c, turn);
  if (last.role === "assistant") {
    if (busy() && !last.note && !last.text) bodies.get(last).classList.add("waiting");
    if (last.note || !busy()) finish(c, last);
  }
  for (const turn of c.turns) if (turn !== last && turn.fault && c.mode !== "text") bodies.get(turn).after(make("p.bad", turn.fault.message));
}

/** The line below the last answer when it has ended. */
function finish(c, turn) {
  const body = bodies.get(turn);
  if (!body) return;
  body.classList.remove("waiting");
  if (turn.swarm?.contradictions?.length) fill(body, turn);
  addCredit(c, turn);
  const holder = c.mode === "text" ? body.closest(".page") : body.parentElement;
  holder.querySelector(".after")?.remove();
  $("log").querySelectorAll(".after").forEach(old => old.remove());
  const after = make("div.after");
  if (turn.fault) after.append(fault(turn.fault));
  const button = (label, title, onclick) => make("button", label, { type: "button", title, onclick });
  const copy = button("Copy", "Copy the text", async () => {
    await navigator.clipboard?.writeText(c.mode === "text" ? c.turns.map(t => t.text).join("") : turn.text).then(() => { copy.textContent = "Copied"; setTimeout(() => { copy.textContent = "Copy"; }, 1500); }, () => announce("The browser did not allow it."));
  });
  const actions = make("p.actions", turn.fault ? null : button("Regenerate", "Generate this answer again", regenerate), turn.text ? copy : null);
  if (turn.text && !turn.swarm) actions.append(inspectButton(after, body, c.model, turn.text));
  after.append(make("p.note", facts(turn.note)), actions);
  holder.append(after);
  scrollToEnd();
}

function facts(note) {
  if (!note) return "";
  const parts = note.tokens ? [`${count(note.tokens)} tokens`] : [];
  if (note.rate) parts.push(`${rate(note.rate)} tok/s`);
  if (note.wait) parts.push(`first token after ${note.wait < 1 ? `${Math.round(note.wait * 1000)} ms` : `${note.wait.toFixed(1)} s`}`);
  if (note.prompt) parts.push(note.cached ? `prompt ${count(note.prompt)}, ${percent(note.cached / note.prompt)} cached` : `prompt ${count(note.prompt)}`);
  if (note.ended === "length") parts.push("reached max tokens");
  if (note.ended === "stopped") parts.push("stopped");
  return parts.join(" · ");
}

function fault({ message, retry }) {
  const button = make("button", "Try again", { type: "button", onclick: regenerate });
  if (retry) {
    const until = performance.now() + retry * 1000;
    button.disabled = true;
    const tick = () => {
      const left = Math.ceil((until - performance.now()) / 1000);
      button.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
      button.disabled = left > 0;
      if (left > 0 && button.isConnected !== false) setTimeout(tick, 250);
    };
    tick();
  }
  return make("div.bad", make("p", message), button, { role: "alert" });
}

/** The placeholder of an empty conversation. */
function placeholder(c) {
  const chat = models.chatting(), name = models.chosen();
  const suggest = text => make("button", text, { type: "button", onclick: () => { $("prompt").value = text; $("prompt").dispatchEvent(new Event("input")); $("prompt").focus(); } });
  const first = chat ? ["Who are you?", "Tell me a short story.", "Explain rain to a child."] : ["Once upon a time", "def main(", "The history of"];
  if (c.read) return make("div.empty", make("h3", c.title), make("p", "The server has the state of this conversation; its text is not in this browser. Your next message continues it."));
  return make("div.empty",
    make("h3", !name ? "Waiting for the server" : chat ? `Chat with ${name}` : `Write with ${name}`),
    make("p", !name ? "" : models.isSwarm(name) ? name === "swarm" ? "Each message goes to the specialists that are likely to answer it well." : "A specialist of the swarm." : chat && !models.hasChatTemplate() ? "This model has no chat template; text mode may work better." : chat ? "Only new tokens are evaluated: the model’s state holds the conversation so far." : "It continues any text you give it."),
    name ? make("p.first", ...first.map(suggest)) : null);
}

// Scrolls with the answer, unless the user has scrolled up

let autoScroll = true;

function scrollToEnd(force = false) {
  const box = $("scroll");
  if (force) autoScroll = true;
  if (autoScroll) box.scrollTop = box.scrollHeight;
}

export function init() {
  const box = $("scroll");
  box.addEventListener("scroll", () => {
    autoScroll = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    $("down").hidden = autoScroll;
  }, { passive: true });
  $("down").addEventListener("click", () => { scrollToEnd(true); $("down").hidden = true; $("prompt").focus(); });
}
