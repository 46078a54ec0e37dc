// Specialists that failing requests call for, and the decision on them.

import { get, post } from "./api.js";
import { announce, make } from "./dom.js";
import { several } from "./format.js";

/** The proposals; an admin makes or rejects them. */
export async function proposals(may, refresh) {
  const { data } = await get("api/swarm/proposals");
  return make("section", make("h2", "Proposed specialists"),
    data.length ? make("ul.cards", ...data.map(each => card(each, may("admin"), refresh)))
      : make("p.nothing", "None. Similar requests that keep failing propose a specialist."));
}

function card(each, decides, refresh) {
  const fault = make("p.bad", { role: "alert", hidden: true });
  const decide = state => async () => {
    try { await post(`api/swarm/proposals/${encodeURIComponent(each.name)}`, { state }); } catch (error) { fault.textContent = error.message; fault.hidden = false; return; }
    announce(state === "approved" ? `${each.name} takes part now.` : `${each.name} is not proposed again.`);
    await refresh();
  };
  const button = (label, state) => make("button", label, { type: "button", onclick: decide(state), "aria-label": `${label} ${each.name}` });
  return make("li.card", make("h3", each.name), make("p", `For ${several(each.requests, "request")} about ${each.capabilities.join(", ")}.`),
    make("p.quote", each.prompt), decides ? make("p.actions", button("Make", "approved"), button("Reject", "rejected")) : null, fault);
}
