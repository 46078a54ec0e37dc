// What a user says of a swarm's answer: good or bad, and what would have been better.

import { post } from "./api.js";
import { announce, make } from "./dom.js";
import { specialists } from "./models.js";

/** The buttons below an answer, and the form of a correction. `save()` stores the turn. */
export function ratingOf(turn, save) {
  const swarm = turn.swarm, holder = make("div.rating"), status = make("p.note", { role: "status" });
  const button = (label, title, onclick) => make("button", label, { type: "button", title, onclick });
  const send = async (body, words) => {
    const given = { answer_id: swarm.answer_id, ...body };
    if (swarm.user) given.user = swarm.user;
    try { await post("api/feedback", given); } catch (error) { status.textContent = error.message; status.classList.add("bad"); return false; }
    status.classList.remove("bad");
    status.textContent = words;
    announce(words);
    save();
    show();
    return true;
  };
  const rate = async score => {
    const before = swarm.score;
    swarm.score = score;
    if (!await send({ score }, score > 0 ? "Rated as good." : "Rated as bad.")) { swarm.score = before; show(); }
  };
  const good = button("Good", "This answer is good", () => rate(1)), bad = button("Bad", "This answer is bad", () => rate(-1));
  const correct = button("Correct", "Write a better answer", () => {
    if (form.hidden) { form.hidden = false; form.querySelector("textarea").focus(); } else form.hidden = true;
    correct.setAttribute("aria-expanded", !form.hidden);
  });
  const form = correctionForm(turn, async (text, right) => {
    swarm.correction = text;
    if (!await send({ correction: text, ...(right ? { right } : {}) }, "Corrected. A reviewer decides whether it is learned.")) { delete swarm.correction; return; }
    form.hidden = true;
    correct.setAttribute("aria-expanded", false);
    correct.focus();
  });
  const show = () => {
    good.setAttribute("aria-pressed", swarm.score === 1);
    bad.setAttribute("aria-pressed", swarm.score === -1 || Boolean(swarm.correction));
  };
  correct.setAttribute("aria-expanded", false);
  holder.append(make("p.actions", good, bad, correct, { role: "group", "aria-label": "Rate this answer" }), form, status);
  if (swarm.correction) status.textContent = "Corrected. A reviewer decides whether it is learned.";
  show();
  return holder;
}

function correctionForm(turn, submit) {
  const text = make("textarea", { rows: 4, value: turn.swarm.correction ?? turn.text, maxLength: 100000, required: true });
  const right = make("select", make("option", "–", { value: "" }), ...specialists().map(name => make("option", name, { value: name })));
  const form = make("form.correction", make("label.field", make("span", "A better answer"), text),
    make("p.actions", make("label.pick", make("span", "Who should have answered?"), right), make("button.main", "Send", { type: "submit" })));
  form.hidden = true;
  form.addEventListener("submit", event => { event.preventDefault(); if (text.value.trim()) submit(text.value, right.value); });
  return form;
}
