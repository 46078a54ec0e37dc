// Facts as a graph: subjects and objects in columns, each fact an arrow with its relation.

import { cut, drawing, svg } from "./svg.js";

const ROW = 46, COLUMN = 230, LETTER = 7.4, BOX = 26;

/** The drawing of facts for a width; it may be wider, where there are more columns than fit. */
export function graph(facts, available) {
  const { nodes, columns } = layout(facts);
  const width = Math.max(available, columns * 190), step = columns > 1 ? Math.min(COLUMN * 1.6, (width - 20) / columns) : width - 20;
  const rows = Math.max(...[...nodes.values()].map(node => node.row)) + 1, height = rows * ROW + 10;
  const letters = Math.max(6, Math.floor(step * .44 / LETTER));
  for (const node of nodes.values()) {
    node.text = cut(node.name, letters);
    node.width = [...node.text].length * LETTER + 18;
    node.x = 8 + node.column * step;
    node.y = 5 + node.row * ROW + ROW / 2;
  }
  const ends = new Map(), count = (id, by) => ends.set(id, (ends.get(id) ?? 0) + by);
  for (const fact of facts) { count(`from ${key(fact.subject)}`, 1); count(`to ${key(fact.object)}`, 1); }
  return drawing("facts", Math.max(available, 8 + (columns - 1) * step + Math.max(...[...nodes.values()].filter(node => node.column === columns - 1).map(node => node.width)) + 8), height,
    `${facts.length} facts: ${facts.slice(0, 8).map(fact => `${fact.subject} ${fact.negated ? "not " : ""}${fact.predicate} ${fact.object}`).join("; ")}`,
    svg("defs", svg("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" }, svg("path", { d: "M0 0L8 4L0 8z" }))),
    ...facts.map(fact => {
      const from = `from ${key(fact.subject)}`, to = `to ${key(fact.object)}`, atSource = ends.get(from) < ends.get(to);
      count(`labels ${atSource ? from : to}`, 1); // the words stand at the end that has fewer arrows
      return arrow(fact, nodes.get(key(fact.subject)), nodes.get(key(fact.object)), atSource, ends.get(`labels ${atSource ? from : to}`) - 1);
    }),
    ...[...nodes.values()].map(node => svg("g.node", svg("rect", { x: node.x, y: node.y - BOX / 2, width: node.width, height: BOX, rx: 7 }), svg("text", { x: node.x + 9, y: node.y + 4.5 }, node.text), svg("title", node.name))));
}

const key = text => text.trim().toLowerCase();

/** The column of a node is one more than that of what points at it; what is in a circle begins where it is met first. */
function layout(facts) {
  const nodes = new Map(), edges = [];
  for (const fact of facts) {
    const [from, to] = [fact.subject, fact.object].map(name => {
      const id = key(name);
      if (!nodes.has(id)) nodes.set(id, { id, name, column: 0, row: 0, waits: 0 });
      return nodes.get(id);
    });
    if (from !== to) { edges.push([from, to]); to.waits++; }
  }
  const pending = new Set(nodes.values());
  while (pending.size) {
    const node = [...pending].find(each => each.waits <= 0) ?? pending.values().next().value;
    pending.delete(node);
    for (const [from, to] of edges) if (from === node && pending.has(to)) { to.column = Math.max(to.column, node.column + 1); to.waits--; }
  }
  // A row for each object below the last one of its column, beside its subject where there is room.
  const used = [];
  for (const node of [...nodes.values()].sort((a, b) => a.column - b.column)) {
    const parent = edges.find(([from, to]) => to === node && from.column < node.column)?.[0];
    node.row = Math.max(used[node.column] ?? 0, parent?.row ?? 0);
    used[node.column] = node.row + 1;
  }
  // The first column is spread over what it points at.
  let free = Infinity;
  for (const node of [...nodes.values()].filter(each => each.column === 0).reverse()) {
    const rows = edges.filter(([from, to]) => from === node && to.column > 0).map(([, to]) => to.row);
    if (rows.length) node.row = Math.min(free - 1, Math.max(node.row, Math.min(...rows)));
    free = node.row;
  }
  return { nodes, columns: Math.max(...[...nodes.values()].map(node => node.column)) + 1 };
}

function arrow(fact, from, to, atSource, place) {
  const label = `${fact.negated ? "not " : ""}${fact.predicate.replaceAll("_", " ")}`;
  const kind = [fact.valid_until === null ? "" : ".past", fact.negated ? ".negated" : "", fact.trusted ? "" : ".doubtful"].join("");
  const title = svg("title", `${fact.subject} ${label} ${fact.object}`);
  if (from === to) { // a loop at its right
    const x = from.x + from.width, y = from.y;
    return svg(`g.fact${kind}`, svg("path", { d: `M${x} ${y - 6}c26 -14 26 26 2 12`, "marker-end": "url(#arrow)" }), svg("text", { x: x + 24, y: y + 4 }, cut(label, 20)), title);
  }
  const x1 = from.x + from.width, x2 = to.x - 2, bend = Math.max(30, Math.abs(x2 - x1) / 2);
  const text = atSource ? { x: x1 + 8, y: from.y - 5 - 12 * place } : { x: x2 - 12, y: to.y - 5 - 12 * place, "text-anchor": "end" };
  return svg(`g.fact${kind}`, svg("path", { d: `M${x1} ${from.y}C${x1 + bend} ${from.y} ${x2 - bend} ${to.y} ${x2} ${to.y}`, "marker-end": "url(#arrow)" }),
    svg("text", text, cut(label, Math.max(4, Math.floor((x2 - x1 - 24) / 5.8)))), title);
}
