// A swarm's answers: the request, the drafts while it works, and whose answer it is, with what confidence and why.

import { hasKey } from "./api.js";
import { listed } from "./contradictions.js";
import { make } from "./dom.js";
import { ratingOf } from "./feedback.js";
import { percent } from "./format.js";
import { sampling, system, user } from "./settings.js";

const SHOWN = 8; // estimates and facts of an answer

/** The path and body of a request to the swarm, or to one of its specialists. */
export function requestTo(model, turns, conversation) {
  const messages = turns.map(({ role, text }) => ({ role, content: text })), words = system(), name = user();
  if (words) messages.unshift({ role: "system", content: words });
  const body = { model, messages, ...sampling(), stream_options: { include_usage: true } };
  if (name) body.user = name;
  if (name || hasKey()) body.conversation = conversation; // what nobody in particular says is not recorded
  return { path: "v1/chat/completions", resumes: false, body };
}

/** Takes in what a chunk says of a swarm's answer; `holder()` is where drafts are shown, or null. */
export function take(turn, said, holder) {
  if (said?.draft) draft(said.draft, holder());
  else if (said?.answer_id) turn.swarm = { ...turn.swarm, ...said, user: user() };
}

function draft({ specialist, text }, holder) {
  if (!holder) return;
  holder.drafts ??= new Map();
  let line = holder.drafts.get(specialist);
  if (!line) {
    line = make("span");
    holder.drafts.set(specialist, line);
    holder.append(make("p", make("b", specialist), line));
  }
  line.whole = (line.whole ?? "") + text;
  line.textContent = line.whole.length > 120 ? `… ${line.whole.slice(-118)}` : line.whole;
}

/** The line of who answered, the contradictions, the reasons and the rating. */
export function credit(turn, save) {
  const swarm = turn.swarm, drafts = swarm.drafts ?? [];
  const others = drafts.filter(each => each.specialist !== swarm.by);
  const line = make("p.by", make("b", swarm.by), ` answered, ${percent(swarm.confidence)} confident`,
    others.length ? make("span", ` · also drafted: ${others.map(each => `${each.specialist} ${percent(each.confidence)}`).join(", ")}`) : null,
    swarm.routing?.domain ? make("span", ` · domain: ${swarm.routing.domain}`) : null);
  return make("div.credit", line, swarm.degraded ? make("p.bad", swarm.degraded) : null, listed(swarm.contradictions), why(swarm), ratingOf(turn, save));
}

function why({ routing, facts = [] }) {
  if (!routing) return null;
  const estimates = Object.entries(routing.estimates ?? {}).slice(0, SHOWN);
  const bar = share => { const i = make("i"); i.style.width = `${100 * share}%`; return make("span.track", i); };
  return make("details.why", make("summary", "Why"), make("p", routing.why),
    estimates.length ? make("ul.estimates", ...estimates.map(([name, share]) => make("li", make("b", name), bar(share), make("em", percent(share)))), { "aria-label": "Estimated success" }) : null,
    facts.length ? make("p", "In the prompt:") : null,
    facts.length ? make("ul.known", ...facts.slice(0, SHOWN).map(fact => make("li", fact))) : null);
}
