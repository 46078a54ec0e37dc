// What the swarm knows: facts searched by words and meaning, with their source and history, as a graph and a list.

import { get, hasKey, post } from "./api.js";
import { factText, sourceOf } from "./contradictions.js";
import { $, announce, make } from "./dom.js";
import { graph } from "./fact_graph.js";
import { ago, day, several } from "./format.js";
import { user } from "./settings.js";
import { stored } from "./stored_data.js";
import { fitted } from "./svg.js";

const DRAWN = 40; // facts of the graph
let query = "", history = false;

export async function show(holder, { may }) {
  const results = make("div.results", { "aria-live": "polite" });
  const words = make("input", { type: "search", id: "fact-query", value: query, placeholder: "Search facts", maxLength: 2000, autocomplete: "off" });
  const past = make("input", { type: "checkbox", checked: history });
  const form = make("form.search", make("label.visually-hidden", "Search facts", { htmlFor: "fact-query" }), words, make("button.main", "Search", { type: "submit" }),
    make("label.check", past, " History"), { role: "search" });
  const load = async () => {
    query = words.value.trim();
    history = past.checked;
    const given = new URLSearchParams({ history });
    if (query) given.set("query", query);
    if (whose(may)) given.set("user", whose(may));
    try { draw(results, (await get(`api/swarm/facts?${given}`)).data, may, load); } catch (error) { results.replaceChildren(make("p.bad", error.message, { role: "alert" })); }
  };
  form.addEventListener("submit", event => { event.preventDefault(); load(); });
  past.addEventListener("change", load);
  holder.replaceChildren(form, results, ...hasKey() || whose(may) ? [stored(whose(may), load)] : []);
  await load();
}

export function focus() { $("fact-query")?.focus(); }

/** The user whose facts are shown beside everybody's; without a key only an admin may name one. */
const whose = may => hasKey() || may("admin") ? user() : "";

function draw(results, facts, may, load) {
  const name = whose(may), owner = name ? `of ${name} and everybody` : hasKey() ? "of this key’s user and everybody" : "of everybody";
  if (!facts.length) { results.replaceChildren(make("p.nothing", query ? "No fact belongs to this." : `No facts ${owner} yet.`)); return; }
  const drawn = facts.slice(0, DRAWN);
  results.replaceChildren(make("p.nothing", `${several(facts.length, "fact")} ${owner}${query ? ", the best first" : ", the latest first"}${facts.length > DRAWN ? `; the graph has the first ${DRAWN}` : ""}`),
    fitted(make("div.graph", { tabIndex: 0, role: "group", "aria-label": "Graph of these facts" }), width => graph(drawn, width)),
    make("ul.facts", ...facts.map(fact => item(fact, facts, may, load))));
}

function item(fact, facts, may, load) {
  const state = fact.valid_until !== null ? "past" : fact.trusted ? "trusted" : "to review";
  const next = fact.superseded_by === null ? null : facts.find(each => each.id === fact.superseded_by);
  const notes = [`f${fact.id}`, fact.shared ? "everybody’s" : "", sourceOf(fact.source), `since ${day(1000 * fact.valid_from)}`, fact.valid_until === null ? "" : `until ${day(1000 * fact.valid_until)}`,
    fact.superseded_by === null ? "" : `superseded by f${fact.superseded_by}${next ? ` (${next.object})` : ""}`,
    fact.times_seen > 1 ? `said ${fact.times_seen} times, last ${ago(1000 * fact.last_seen)}` : ""].filter(Boolean);
  const fault = make("p.bad", { role: "alert", hidden: true });
  const change = async (body, said) => {
    const name = whose(may);
    try { await post(`api/swarm/facts/${fact.id}`, name ? { ...body, user: name } : body); } catch (error) { fault.textContent = error.message; fault.hidden = false; return; }
    announce(said);
    await load();
  };
  const changes = fact.valid_until === null && (may("admin") || (!fact.shared && hasKey()));
  const form = changes ? correction(fact, object => change({ object }, "Corrected.")) : null;
  const button = (label, onclick) => make("button", label, { type: "button", onclick, "aria-label": `${label}: ${factText(fact)}` });
  return make(`li.${state.replace(" ", "-")}`, make("p", make("b", fact.subject), " ", make("span", `${fact.negated ? "not " : ""}${fact.predicate.replaceAll("_", " ")}`), " ", make("b", fact.object), make("em", state)),
    make("p.note", notes.join(" · ")),
    changes ? make("p.actions", button("Correct", () => { form.hidden = !form.hidden; form.querySelector("input").focus(); }),
      button("End", () => change({ ended: true }, "It holds no longer.")), !fact.trusted && may("reviewer") ? button("Trust", () => change({ trusted: true }, "Trusted.")) : null) : null,
    form, fault);
}

function correction(fact, submit) {
  const input = make("input", { type: "text", value: fact.object, maxLength: 1000, required: true, "aria-label": `What is right instead of ${fact.object}` });
  const form = make("form.search", input, make("button.main", "Correct", { type: "submit" }));
  form.hidden = true;
  form.addEventListener("submit", event => { event.preventDefault(); if (input.value.trim()) submit(input.value.trim()); });
  return form;
}
