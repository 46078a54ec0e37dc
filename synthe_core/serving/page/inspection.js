// Inside the last answer: gates, routing, memory, depth and confidence of every layer, one strip each, over its tokens.

import { post } from "./api.js";
import { announce, make } from "./dom.js";
import { short, visible } from "./format.js";
import { onSelect, selectToken } from "./selection.js";
import { empty, onTheme, ramp } from "./theme.js";

const GROUPS = { gates: "Gates", routing: "Routing", memory: "Memory", depth: "Depth", confidence: "Confidence", stream: "Stream" };
const CATEGORY = new Set(["chosen", "read_slots", "loudest"]);
const BLANK = null;
let group = "gates"; // as it was chosen last
let shown = null; // the panel that is open

/** The button that opens and closes the panel in `holder`; `body` holds the answer's tokens. */
export function inspectButton(holder, body, model, text) {
  const button = make("button", "Inspect", { type: "button", title: "Gates, routing, memory, depth and confidence, layer by layer", "aria-expanded": false });
  let panel = null;
  button.addEventListener("click", async () => {
    const opening = !panel;
    button.setAttribute("aria-expanded", opening);
    if (!opening) { panel.remove(); panel = shown = null; return; }
    panel = make("section.inspection", make("p.loading", "Evaluating the answer again …"), { "aria-label": "Inspection of the answer", "aria-busy": true });
    holder.append(panel);
    try { draw(panel, body, await inspect(model, text)); } catch (error) { panel.replaceChildren(make("p.bad", error.message, { role: "alert" })); }
    panel?.setAttribute("aria-busy", "false");
    panel?.scrollIntoView({ block: "nearest" });
  });
  return button;
}

/** The inspection of the last request; if another request came after it, of the answer alone. */
async function inspect(model, text) {
  const seen = async body => {
    const { tokens, series } = await post("api/introspect", { model, ...body });
    const spelled = tokens.map(t => t.text);
    const whole = (name, meaning, values) => ({ path: "", name, group: "confidence", meaning, at: null, rows: [values] });
    const own = tokens[0]?.bits === undefined ? [] : [
      whole("surprise", "surprise of the token, in bits", tokens.map(t => t.bits)), whole("entropy", "entropy of the next token, in bits", tokens.map(t => t.entropy)),
    ];
    return { tokens: spelled, series: [...own, ...series], from: start(spelled, text) };
  };
  const last = await seen({}).catch(error => { if (error.status === 404) return { from: -1 }; throw error; });
  if (last.from >= 0) return last;
  const alone = await seen({ text });
  return { ...alone, from: Math.max(0, alone.from) };
}

/** The index at which `text` begins in tokens that end with it; -1 if they do not. */
function start(tokens, text) {
  const target = text.trim();
  for (let end = tokens.length; end >= Math.max(0, tokens.length - 2); end--) { // the last may be an end mark
    let joinedText = "";
    for (let i = end - 1; i >= 0; i--) {
      joinedText = tokens[i] + joinedText;
      if (joinedText.length < target.length) continue;
      if (joinedText.includes(target) || joinedText.trim().endsWith(target.slice(-40))) return i;
      break;
    }
  }
  return -1;
}

function draw(panel, body, seen) {
  const length = seen.tokens.length - seen.from;
  const groups = Object.keys(GROUPS).filter(name => seen.series.some(s => s.group === name));
  if (!groups.length) { panel.replaceChildren(make("p.nothing", "This model reports no signals of its layers.")); return; }
  const selected = groups.includes(group) ? group : groups[0];
  const tabs = make("div.tabs", ...groups.map(name => make("button", GROUPS[name], {
    type: "button", "aria-pressed": name === selected, onclick: () => { group = name; draw(panel, body, seen); panel.querySelector(".tabs [aria-pressed=true]").focus(); },
  })), { role: "group", "aria-label": "What to show" });
  const selection = make("p.selection", "Point at a token or a strip.");
  const grid = make("div.grid");
  const strips = seen.series.filter(s => s.group === selected).map(s => strip(s, seen, length));
  let block = null;
  for (const one of strips) {
    if (one.block !== block) grid.append(make("h4", one.block === null ? "whole model" : `block ${one.block}`));
    block = one.block;
    grid.append(one.row);
  }
  panel.replaceChildren(tabs, selection, grid);
  const tokens = [...body.querySelectorAll(".t")];
  shown = { panel, strips, selection, seen, length, tokens };
  for (const one of strips) {
    paint(one);
    one.canvas.addEventListener("pointermove", event => {
      const box = one.canvas.getBoundingClientRect();
      selectAt(Math.min(length - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * length))), one);
    });
    one.canvas.addEventListener("pointerleave", () => selectAt(-1));
  }
  grid.tabIndex = 0;
  grid.setAttribute("role", "group");
  grid.setAttribute("aria-label", `${GROUPS[selected]}, ${strips.length} strips over ${length} tokens; use the arrow keys`);
  let at = -1;
  grid.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    at = Math.min(length - 1, Math.max(0, at + step));
    selectAt(at);
    announce(`${selection.textContent}: ${strips.slice(0, 4).map(s => `${s.label} ${s.says.textContent}`).join(", ")}`);
  });
  grid.addEventListener("blur", () => selectAt(-1));
}

function strip(s, seen, length) {
  const index = new Int32Array(seen.tokens.length).fill(-1);
  if (s.at) s.at.forEach((token, n) => { if (token < index.length) index[token] = n; });
  else for (let i = 0; i < index.length; i++) index[i] = i < s.rows[0].length ? i : -1;
  const parts = s.path.split("."), block = parts[0] === "blocks" ? +parts[1] : null;
  const inner = block === null ? s.path : parts.slice(3).join(".");
  const label = [block === null ? null : s.learner, inner, s.name.replace(/^signal\./, "")].filter(Boolean).join(" ").replaceAll("_", " ");
  const rows = s.rows.slice(0, 32);
  const value = (r, i) => { const n = index[seen.from + i]; return n < 0 ? BLANK : rows[r][n] ?? BLANK; };
  let low = Infinity, high = -Infinity;
  for (let r = 0; r < rows.length; r++) for (let i = 0; i < length; i++) { const v = value(r, i); if (v !== BLANK) { low = Math.min(low, v); high = Math.max(high, v); } }
  const canvas = make("canvas"), says = make("span.says");
  canvas.style.height = `${rows.length === 1 ? 14 : Math.max(18, Math.min(72, rows.length * (rows.length <= 4 ? 6 : 3)))}px`;
  canvas.setAttribute("aria-hidden", "true");
  const range = low > high ? "no value" : `${short(low)} to ${short(high)}`;
  const row = make("div.strip", make("span.name", label, { title: `${s.meaning || s.name}\n${range}${s.rows.length > 1 ? `, ${s.rows.length} rows` : ""}` }), canvas, says);
  return { row, canvas, says, block, label, rows: rows.length, length, value, low, high, group: s.group, choice: CATEGORY.has(s.name) };
}

function paint(one) {
  const { canvas, rows, length, value, low, high, choice } = one;
  const colours = ramp(choice ? "choice" : one.group), none = empty();
  canvas.width = length;
  canvas.height = rows;
  const pen = canvas.getContext("2d"), image = pen.createImageData(length, rows);
  for (let r = 0; r < rows; r++) for (let i = 0; i < length; i++) {
    const v = value(r, i);
    const c = v === BLANK ? none : colours[choice ? v % 256 : Math.round(255 * (v - low) / ((high - low) || 1))];
    image.data.set([...c, 255], 4 * (r * length + i));
  }
  pen.putImageData(image, 0, 0);
}

/** Shows the signals of the answer's token `i`; -1 clears them. */
function selectAt(i, over = null, pointing = true) {
  if (!shown) return;
  const { strips, selection, seen, length, tokens, panel } = shown;
  selection.textContent = i < 0 ? "Point at a token or a strip." : "";
  if (i >= 0) selection.append(make("b", visible(seen.tokens[seen.from + i])), ` token ${i + 1} of ${length}${over ? `, ${over.label}` : ""}`);
  for (const one of strips) {
    const values = i < 0 ? [] : Array.from({ length: one.rows }, (_, r) => one.value(r, i)).filter(v => v !== BLANK);
    one.says.textContent = !values.length ? "" : one.choice ? values.slice(0, 3).join(" ") : `${values.length > 1 ? "ø " : ""}${short(values.reduce((a, b) => a + b, 0) / values.length)}`;
  }
  panel.classList.toggle("at", i >= 0);
  panel.querySelector(".grid").style.setProperty("--at", i < 0 ? 0 : (i + .5) / length);
  if (pointing && tokens.length) { markedToken?.classList.remove("now"); markedToken = i < 0 ? null : tokens[Math.min(i, tokens.length - 1)] ?? null; markedToken?.classList.add("now"); }
}
let markedToken = null;

export function init() {
  onTheme(() => shown?.strips.forEach(paint));
  onSelect(element => {
    if (!shown) return;
    const i = element ? shown.tokens.indexOf(element) : -1;
    selectAt(i >= 0 && i < shown.length ? i : -1, null, false);
  });
  addEventListener("keydown", event => { if (event.key === "Escape") selectToken(null); });
}
