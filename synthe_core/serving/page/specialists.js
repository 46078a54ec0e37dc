// The specialists, with their success and its credible interval by domain.

import { day, duration, percent, several } from "./format.js";
import { make } from "./dom.js";
import { proposals } from "./proposals.js";

const DOMAINS = 12; // of a specialist that are shown

export async function show(holder, { status, may, refresh }) {
  const rows = [...status.specialists, { ...status.fallback, isFallback: true }].filter((each, i, all) => all.findIndex(other => other.name === each.name) === i);
  const table = make("table.specialists", make("caption.visually-hidden", "Success of each specialist by domain"),
    make("thead", make("tr", ...["Specialist and domain", "Success", "Rated"].map(head => make("th", head, { scope: "col" })))),
    ...rows.map(specialist));
  holder.replaceChildren(summary(status), table,
    make("p.nothing", "The bar is the interval in which the rate of success lies with 90% probability, the mark its mean. Without ratings it is wide."));
  if (may("reviewer")) holder.append(await proposals(may, refresh));
}

function summary({ answers, rated, calibration_error: error, learning }) {
  const now = learning.now;
  const fact = (label, text, title = "") => make("div", make("dt", label, { title }), make("dd", text));
  return make("dl.summary", fact("Answers", String(answers)), fact("Rated", String(rated)),
    fact("Calibration error", error === null ? "–" : percent(error), "Expected calibration error: by how much confidence and success differ"),
    now ? fact("Learning now", [now.specialist, now.doing, now.total ? percent(now.done / now.total) : "", now.began ? `for ${duration(Date.now() / 1000 - now.began)}` : ""].filter(Boolean).join(", ")) : null);
}

function specialist(each) {
  const facts = [each.capabilities?.join(", "), each.isFallback ? "answers where no specialist fits" : "",
    each.digest ? `adapter ${each.digest.slice(0, 8)}${each.time ? `, since ${day(1000 * each.time)}` : ""}` : "",
    each.calibration_error == null ? "" : `calibration error ${percent(each.calibration_error)}`, pairsOf(each.pairs)].filter(Boolean);
  const domains = Object.entries(each.domains).sort(([a, x], [b, y]) => y.answers - x.answers || a.localeCompare(b));
  const total = domains.reduce((sum, [, domain]) => sum + domain.answers, 0);
  const head = make("tr.overall", make("th", make("b", each.name), each.description ? make("span", each.description) : null, ...facts.map(text => make("small", text)), { scope: "rowgroup" }),
    make("td", each.success ? band(each.success.mean, each.success.interval) : "–"), make("td", String(Math.round(total))));
  const more = domains.length - DOMAINS;
  return make("tbody", head, ...domains.slice(0, DOMAINS).map(([name, domain]) => make("tr", make("th", name, { scope: "row" }),
    make("td", band(domain.success, domain.interval)), make("td", String(Math.round(domain.answers))))),
  more > 0 ? make("tr", make("th", `and ${several(more, "more domain")}`, { scope: "row" }), make("td"), make("td")) : null);
}

function pairsOf(pairs = {}) {
  const counts = Object.entries(pairs).filter(([, count]) => count).map(([state, count]) => `${count} ${state}`);
  return counts.length ? `pairs: ${counts.join(", ")}` : "";
}

/** A rate with its interval. */
function band(mean, [low, high]) {
  const interval = make("i"), mark = make("b");
  interval.style.left = `${100 * low}%`;
  interval.style.width = `${100 * (high - low)}%`;
  mark.style.left = `${100 * mean}%`;
  return make("span.band", make("span.scale", interval, mark, { "aria-hidden": true }), make("span", percent(mean), make("small", ` ${Math.round(100 * low)}–${Math.round(100 * high)}%`)));
}
