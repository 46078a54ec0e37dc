// Pathways: which specialists succeed together, as a graph on a circle and as a table.

import { make } from "./dom.js";
import { percent } from "./format.js";
import { cut, drawing, fitted, svg } from "./svg.js";

const NARROWEST = 36; // pixels of the circle's edge for each node

export function show(holder, { status }) {
  const paths = status.pathways;
  const names = [...new Set([...status.specialists.map(each => each.name), ...paths.flatMap(path => path.members)])];
  if (!paths.length) { holder.replaceChildren(make("p.nothing", "No answer has been rated yet. Combinations of specialists that succeed together are strengthened.")); return; }
  holder.replaceChildren(
    fitted(make("div.graph"), width => graph(names, paths, width)),
    make("p.nothing", "Lines are combinations; the wider, the more they succeed together. Discs are specialists alone. What is not used fades."),
    make("table.rows", make("caption.visually-hidden", "Pathways, the strongest first"),
      make("thead", make("tr", ...["Specialists", "Strength", "Rated", "Success"].map(head => make("th", head, { scope: "col" })))),
      make("tbody", ...paths.map(path => make("tr", make("th", path.members.join(" + "), { scope: "row" }), make("td", path.weight.toFixed(2)),
        make("td", String(path.answers)), make("td", path.answers ? percent(path.successes / path.answers) : "–"))))));
}

function graph(names, paths, available) {
  const width = Math.max(available, names.length > 12 ? 560 : 0);
  const side = Math.min(150, width * .28), radius = Math.max(70, Math.min(60 + 30 * names.length, 210, width / 2 - side), names.length * NARROWEST / (2 * Math.PI));
  const letters = Math.floor((width / 2 - radius - 20) / 6.6);
  const places = new Map(names.map((name, i) => {
    const angle = 2 * Math.PI * i / names.length - Math.PI / 2;
    return [name, { x: width / 2 + radius * Math.cos(angle), y: radius + 40 + radius * Math.sin(angle), cos: Math.cos(angle), sin: Math.sin(angle) }];
  }));
  const height = Math.max(...[...places.values()].map(place => place.y)) + 40;
  const alone = new Map(paths.filter(path => path.members.length === 1).map(path => [path.members[0], path]));
  const together = paths.filter(path => path.members.length === 2);
  const strongest = together[0] ?? paths[0];
  return drawing("pathways", width, height, `${names.length} specialists, ${together.length} combinations. The strongest: ${strongest.members.join(" and ")}, ${strongest.weight.toFixed(2)}.`,
    ...together.slice().reverse().map(path => line(path, ...path.members.map(name => places.get(name)))),
    ...names.map(name => node(name, places.get(name), alone.get(name), letters)));
}

function line(path, a, b) {
  return svg("line.edge", { x1: a.x, y1: a.y, x2: b.x, y2: b.y, "stroke-width": (1 + 11 * path.weight).toFixed(1), "stroke-opacity": (.3 + .6 * path.weight).toFixed(2) },
    svg("title", `${path.members.join(" + ")}: ${path.weight.toFixed(2)}, ${path.answers} rated`));
}

function node(name, { x, y, cos, sin }, own, letters) {
  const size = 5 + 9 * Math.sqrt(own?.weight ?? 0), gap = size + 7;
  const anchor = Math.abs(cos) < .2 ? "middle" : cos > 0 ? "start" : "end";
  return svg("g.node", svg("circle", { cx: x, cy: y, r: size.toFixed(1) }),
    svg("text", { x: x + gap * cos, y: y + gap * sin + (anchor === "middle" ? (sin > 0 ? 10 : 0) : 4), "text-anchor": anchor }, cut(name, anchor === "middle" ? 2 * letters : letters)),
    svg("title", own ? `${name} alone: ${own.weight.toFixed(2)}, ${own.answers} rated` : name));
}
