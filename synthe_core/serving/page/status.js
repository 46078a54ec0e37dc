// The server status, polled once a second while the page is visible.

import { get } from "./api.js";
import { $, make } from "./dom.js";
import { count, duration, percent, rate, size } from "./format.js";

const POINTS = 90;
const NS = "http://www.w3.org/2000/svg";
const past = { speed: [], live: [], waiting: [] };
const rows = {};

function spark(kind) {
  const svg = document.createElementNS(NS, "svg"), area = document.createElementNS(NS, "path"), line = document.createElementNS(NS, "path");
  svg.setAttribute("class", `spark ${kind}`);
  svg.setAttribute("viewBox", `0 0 ${POINTS - 1} 24`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  area.setAttribute("class", "area");
  line.setAttribute("class", "line");
  svg.append(area, line);
  return { svg, draw(values, least) {
    const top = Math.max(least, ...values), from = POINTS - values.length;
    const path = values.map((v, i) => `${i ? "L" : "M"}${from + i} ${(23 - 21 * v / top).toFixed(2)}`).join("");
    line.setAttribute("d", path);
    area.setAttribute("d", values.length > 1 ? `${path}L${POINTS - 1} 24L${from} 24Z` : "");
  } };
}

function vital(kind, label) {
  const value = make("b", "–"), unit = make("span.of"), chart = spark(kind);
  $("vitals").append(make("div.vital", make("span.label", label), make("span.figure", value, unit), chart.svg));
  return { value, unit, draw: chart.draw };
}

function fact(into, label, text) {
  into.append(make("div", make("dt", label), make("dd", text)));
}

function meter(into, label, text, share) {
  const bar = make("i");
  bar.style.width = `${100 * Math.min(1, share)}%`;
  into.append(make("div.meter", make("span.label", label), make("span.figure", text), make("span.track", bar, { role: "meter", "aria-label": label, "aria-valuenow": Math.round(100 * share), "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuetext": text })));
}

function push(values, value) {
  values.push(value);
  if (values.length > POINTS) values.shift();
}

function show(status) {
  push(past.speed, status.tokens_per_second ?? 0);
  push(past.live, status.live ?? 0);
  push(past.waiting, status.waiting ?? 0);
  rows.speed.value.textContent = rate(past.speed.at(-1));
  rows.speed.draw(past.speed, 1);
  rows.live.value.textContent = status.live;
  rows.live.unit.textContent = ` of ${status.max_batch}`;
  rows.live.draw(past.live, Math.min(4, status.max_batch));
  rows.waiting.value.textContent = status.waiting;
  rows.waiting.draw(past.waiting, 4);
  $("vitals").setAttribute("aria-busy", "false");

  const cache = $("cache"), { entries = 0, bytes = 0, limit = 0, spilled = 0, hits = 0, misses = 0 } = status.cache ?? {};
  cache.replaceChildren();
  const read = status.prompt_tokens ?? 0, saved = status.cached_tokens ?? 0;
  meter(cache, "Cached prompt tokens", read ? percent(saved / read) : "–", read ? saved / read : 0);
  meter(cache, `${count(entries)} cached state${entries === 1 ? "" : "s"}${spilled ? `, ${count(spilled)} on disk` : ""}`, limit ? `${size(bytes)} of ${size(limit)}` : size(bytes), limit ? bytes / limit : 0);
  const facts = make("dl");
  fact(facts, "Hits / misses", `${count(hits)} / ${count(misses)}`);
  cache.append(facts);

  const memory = $("memory");
  memory.replaceChildren();
  for (const [name, bytes] of Object.entries(status.state_bytes_per_sequence ?? {})) fact(memory, name, size(bytes));
  for (const [name, how] of Object.entries(status.speculation ?? {})) {
    const { drafted_tokens: drafted = 0, accepted_tokens: accepted = 0 } = status;
    fact(memory, `${name}, drafts`, `${how}${drafted ? `, ${percent(accepted / drafted)} of ${count(drafted)} accepted` : ""}`);
  }
  const failed = status.failed ? `, ${count(status.failed)} failed` : "";
  $("since").textContent = `${count(status.requests ?? 0)} requests${failed}, ${count(status.written_tokens ?? 0)} output tokens, uptime ${duration(status.uptime ?? 0)}`;
  pulse("on", rate(past.speed.at(-1)), " tok/s");
  if (status.limits?.max_tokens) $("max_tokens").max = status.limits.max_tokens;
}

function pulse(state, text, unit = "") {
  $("pulse").dataset.state = state;
  $("pulse").querySelector("span").textContent = text;
  $("pulse").querySelector("em").textContent = unit;
}

let timer = 0, isPolling = false;

export async function poll() {
  clearTimeout(timer);
  if (document.hidden || isPolling) return;
  isPolling = true;
  let pause = 1000;
  try { show(await get("api/status", { quiet: true, signal: AbortSignal.timeout(8000) })); } catch (error) {
    pulse("off", error.status === 401 ? "locked" : "offline");
    $("vitals").setAttribute("aria-busy", "true");
    pause = 5000;
  }
  isPolling = false;
  timer = setTimeout(poll, pause);
}

export function init() {
  rows.speed = vital("memory", "Throughput");
  rows.speed.unit.textContent = " tok/s";
  rows.live = vital("gates", "Active requests");
  rows.waiting = vital("routing", "Queued");
  document.addEventListener("visibilitychange", poll);
  poll();
}
