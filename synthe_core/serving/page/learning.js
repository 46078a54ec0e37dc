// What was learned: the figures of every promotion and refusal as curves, the versions with a way back, and the ledger.

import { get, post } from "./api.js";
import { chart, curve } from "./charts.js";
import { announce, make } from "./dom.js";
import { day, percent } from "./format.js";
import { fitted } from "./svg.js";

const LINES = 300; // of the ledger, the newest
const bits = value => value.toFixed(3);
const FIGURES = [
  { title: "Held-out pairs right", of: figures => figures.held_out?.accuracy, format: percent, better: "up" },
  { title: "Pairs held out earlier", of: figures => figures.earlier?.accuracy, format: percent, better: "up" },
  { title: "Other text, bits per byte", of: figures => figures.canary_bits_per_byte, format: bits, better: "down" },
  { title: "Questions right", of: figures => figures.tasks?.accuracy, format: percent, better: "up" },
];

export async function show(holder, { status, may, refresh }) {
  const [{ data: ledger }, { data: versions }] = await Promise.all([get(`api/swarm/history?limit=${LINES}`), get("api/swarm/versions")]);
  const names = [...new Set([...ledger.filter(line => line.figures).map(line => line.specialist), ...versions.map(version => version.specialist)])];
  holder.replaceChildren(begin(status, may, refresh),
    ...names.map(name => specialist(name, ledger.filter(line => line.specialist === name), versions.filter(version => version.specialist === name), may, refresh)),
    make("section", make("h2", "Ledger"), ledger.length ? table(ledger) : make("p.nothing", "Nothing has been learned yet.")));
}

function begin(status, may, refresh) {
  const { now, min_pairs: enough, automatic } = status.learning, says = make("p.note", { role: "status" });
  const approved = status.specialists.map(each => [each.name, each.pairs?.approved ?? 0]).filter(([, count]) => count);
  const words = now ? `${now.specialist ?? "A specialist"} learns: ${now.doing ?? "it begins"}${now.total ? ` ${percent(now.done / now.total)}` : ""}${measured(now)}.`
    : `Approved pairs: ${approved.map(([name, count]) => `${name} ${count}`).join(", ") || "none"}; ${enough} are enough. ${automatic ? "The server begins when it is idle." : "Learning begins by hand."}`;
  const button = make("button", "Learn now", { type: "button", disabled: Boolean(now), onclick: async () => {
    try { const { specialists } = await post("api/swarm/learn"); says.textContent = `${specialists.join(", ")} will learn.`; says.classList.remove("bad"); } catch (error) { says.textContent = error.message; says.classList.add("bad"); return; }
    announce(says.textContent);
    setTimeout(refresh, 2000);
  } });
  const line = make("div.begin", make("p", words), may("admin") ? button : null, says);
  if (!now?.losses?.length) return line;
  const title = `${now.specialist}: training loss`;
  return make("section", line, make("div.charts", make("figure", make("figcaption", title), fitted(make("div"), width => curve(title, now.losses, { width, format: bits })))));
}

/** The newest figures of the training that runs. */
function measured({ train, validation }) {
  const parts = [];
  if (train?.loss !== undefined) parts.push(`loss ${bits(train.loss)} at step ${train.step}`);
  if (validation?.accuracy !== undefined) parts.push(`${percent(validation.accuracy)} of the held-out pairs right at step ${validation.step}`);
  return parts.map(part => `, ${part}`).join("");
}

function specialist(name, lines, versions, may, refresh) {
  const measured = lines.filter(line => line.figures?.held_out);
  const charts = FIGURES.map(figure => ({ ...figure, points: measured.map(line => ({ ...figure.of(line.figures), event: line.event, label: day(1000 * line.time) })).filter(point => Number.isFinite(point.after)) })).filter(figure => figure.points.length);
  return make("section.learned", make("h2", name),
    make("div.charts", ...charts.map(figure => make("figure", make("figcaption", figure.title), fitted(make("div"), width => chart(figure.title, figure.points, { width, ...figure }))))),
    charts.length ? make("p.nothing", "● promoted, × refused; the small dot is the version before.") : null,
    versions.length ? make("ul.versions", ...versions.map(version => versionLine(version, may("admin"), refresh))) : null);
}

function versionLine(version, decides, refresh) {
  const fault = make("span.bad", { role: "alert" }), { trained = 0, held_out = 0, replayed = 0 } = version.pairs;
  let armed = false;
  const button = make("button", "Roll back", { type: "button", "aria-label": `Roll ${version.specialist} back to ${version.parent ?? "no adapter"}`, onclick: async () => {
    if (!armed) { armed = true; button.textContent = `Back to ${version.parent ?? "no adapter"}?`; button.classList.add("armed"); return; }
    try { await post("api/swarm/rollback", { specialist: version.specialist }); } catch (error) { fault.textContent = error.message; return; }
    announce(`${version.specialist} was rolled back.`);
    await refresh();
  }, onblur: () => { armed = false; button.textContent = "Roll back"; button.classList.remove("armed"); } });
  return make("li", make("b", version.adapter), make("span", ` ${version.digest.slice(0, 12)} · ${trained} pairs, ${held_out} held out, ${replayed} replayed`),
    version.current ? make("em.now", "answers") : null, version.current && decides ? button : null, fault);
}

function table(ledger) {
  const arrow = (change, format) => change ? `${format(change.before)} → ${format(change.after)}` : "–";
  const heads = ["When", "Specialist", "Event", "Adapter", "Digest", "Pairs", "Held-out", "Other text", "Questions", "Why"];
  const cells = line => [new Date(1000 * line.time).toLocaleString(undefined, { dateStyle: "short", timeStyle: "short" }), line.specialist, line.event, line.adapter ?? "–", (line.digest ?? "–").slice(0, 12), String(line.pairs?.trained ?? "–"),
    arrow(line.figures?.held_out?.accuracy, percent), arrow(line.figures?.canary_bits_per_byte, bits), arrow(line.figures?.tasks?.accuracy, percent), (line.why ?? []).join("; ") || "–"];
  const rows = ledger.slice().reverse().map(line => make("tr", ...cells(line).map((text, i) => i ? make("td", text, { "data-head": heads[i] }) : make("th", text, { scope: "row" })), { className: line.event.replace(" ", "-") }));
  return make("table.rows.ledger", make("caption.visually-hidden", "The ledger, the newest first"), make("thead", make("tr", ...heads.map(head => make("th", head, { scope: "col" })))), make("tbody", ...rows));
}
