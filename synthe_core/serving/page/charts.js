// A chart of how a figure changed over events: from before to after, and which of it was taken up.

import { cut, drawing, svg } from "./svg.js";

const HEIGHT = 120, TOP = 12, BOTTOM = 20, LEFT = 44, RIGHT = 10;

/**
 * points: {before, after, event, label}; what was promoted is joined by a line, what was refused stands beside it.
 * format: of a value. better: "up" or "down", for the sentence that screen readers read.
 */
export function chart(title, points, { width, format, better }) {
  const values = points.flatMap(point => [point.before, point.after]);
  let low = Math.min(...values), high = Math.max(...values);
  if (high - low < 1e-9) { low -= Math.abs(low) * .05 + 1e-3; high += Math.abs(high) * .05 + 1e-3; }
  const x = i => LEFT + (width - LEFT - RIGHT) * (points.length === 1 ? .5 : i / (points.length - 1));
  const y = value => TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low);
  const promoted = points.map((point, i) => ({ ...point, i })).filter(point => point.event === "promoted");
  const line = promoted.map((point, n) => `${n ? "L" : "M"}${x(point.i).toFixed(1)} ${y(point.after).toFixed(1)}`).join("");
  const last = promoted.at(-1);
  const label = `${title}, ${better === "up" ? "more is better" : "less is better"}: ${points.map(point => `${point.label} ${point.event} ${format(point.before)} to ${format(point.after)}`).slice(-6).join("; ")}`;
  return drawing("chart", width, HEIGHT, label,
    ...[high, low].map(value => svg("g.axis", svg("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }), svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, format(value)))),
    line ? svg("path.line", { d: line }) : null,
    ...points.map((point, i) => mark(point, x(i), y(point.before), y(point.after), format)),
    svg("text.when", { x: x(0), y: HEIGHT - 5, "text-anchor": points.length === 1 ? "middle" : "start" }, cut(points[0].label, 12)),
    points.length > 1 ? svg("text.when", { x: width - RIGHT, y: HEIGHT - 5, "text-anchor": "end" }, cut(points.at(-1).label, 12)) : null,
    last ? svg("text.now", { x: Math.min(x(last.i) + 8, width - RIGHT - 40), y: Math.max(10, y(last.after) - 7) }, format(last.after)) : null);
}

/** The curve of a figure that is measured now. points: [step, value]. */
export function curve(title, points, { width, format }) {
  const values = points.map(([, value]) => value), [first, last] = [points[0][0], points.at(-1)[0]];
  let low = Math.min(...values), high = Math.max(...values);
  if (high - low < 1e-9) { low -= 1e-3; high += 1e-3; }
  const x = step => LEFT + (width - LEFT - RIGHT) * (last === first ? .5 : (step - first) / (last - first));
  const y = value => TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low);
  const line = points.map(([step, value], n) => `${n ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  return drawing("chart", width, HEIGHT, `${title}: ${format(values[0])} at step ${first}, ${format(values.at(-1))} at step ${last}`,
    ...[high, low].map(value => svg("g.axis", svg("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }), svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, format(value)))),
    svg("path.line", { d: line }),
    svg("text.when", { x: x(first), y: HEIGHT - 5 }, `step ${first}`),
    last > first ? svg("text.when", { x: width - RIGHT, y: HEIGHT - 5, "text-anchor": "end" }, `${last}`) : null);
}

function mark(point, x, before, after, format) {
  return svg(`g.change.${point.event === "promoted" ? "promoted" : "refused"}`,
    svg("line", { x1: x, x2: x, y1: before, y2: after }), svg("circle.before", { cx: x, cy: before, r: 2.5 }),
    point.event === "promoted" ? svg("circle.after", { cx: x, cy: after, r: 4 }) : svg("path.after", { d: `M${x - 4} ${after - 4}l8 8m0-8l-8 8` }),
    svg("title", `${point.label}: ${point.event}, ${format(point.before)} → ${format(point.after)}`));
}
