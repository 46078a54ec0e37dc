// Everything that is stored of a user: to download, and to delete.

import { get, remove } from "./api.js";
import { announce, make } from "./dom.js";

/** The section of a user's data; without a name it is the key's own. `deleted()` is called when they are gone. */
export function stored(name, deleted) {
  const path = `api/swarm/data${name ? `?user=${encodeURIComponent(name)}` : ""}`, says = make("p.note", { role: "status" });
  const fail = error => { says.textContent = error.message; says.classList.add("bad"); };
  const download = make("button", "Download", { type: "button", onclick: async () => {
    try { save(await get(path), `${name || "data"}.json`); } catch (error) { fail(error); }
  } });
  let armed = false;
  const arm = on => { armed = on; erase.textContent = on ? "Delete all of it?" : "Delete"; erase.classList.toggle("armed", on); };
  const erase = make("button", "Delete", { type: "button", onblur: () => arm(false), onclick: async () => {
    if (!armed) { arm(true); return; }
    arm(false);
    try {
      const rows = Object.values((await remove(path)).deleted).reduce((sum, count) => sum + count, 0);
      says.classList.remove("bad");
      says.textContent = `Deleted, ${rows} rows.`;
      announce(says.textContent);
    } catch (error) { fail(error); return; }
    await deleted();
  } });
  return make("section.stored", make("h2", `Stored of ${name || "you"}`), make("p.nothing", "Facts with their history, conversations, answers, ratings and pairs. Adapters that were trained with them are not changed by deletion."),
    make("p.actions", download, erase), says);
}

function save(value, name) {
  const address = URL.createObjectURL(new Blob([JSON.stringify(value, null, 1)], { type: "application/json" }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
