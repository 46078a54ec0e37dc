// Drawings: elements of SVG, and text that fits.

const NS = "http://www.w3.org/2000/svg";

/** An element: `svg("path.line", {d: "M0 0"}, child, "text")`; plain objects are attributes. */
export function svg(kind, ...content) {
  const [tag, ...classes] = kind.split(".");
  const element = document.createElementNS(NS, tag);
  if (classes.length) element.setAttribute("class", classes.join(" "));
  for (const part of content) {
    if (part === null || part === undefined) continue;
    if (part instanceof Node || typeof part !== "object") { element.append(part); continue; }
    for (const [name, value] of Object.entries(part)) element.setAttribute(name, value);
  }
  return element;
}

/** A drawing of a size in pixels, which a screen reader reads as one sentence. */
export function drawing(kind, width, height, label, ...content) {
  return svg(`svg.${kind}`, { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label }, ...content);
}

/** A text of at most so many letters. */
export const cut = (text, letters) => { const all = [...text]; return all.length <= letters ? text : `${all.slice(0, Math.max(1, letters - 1)).join("")}…`; };

/** A holder whose content is drawn for its width in pixels, now and whenever that changes. */
export function fitted(holder, draw) {
  let last = 0;
  new ResizeObserver(() => {
    const width = Math.floor(holder.clientWidth);
    if (!width || width === last) return;
    last = width;
    holder.replaceChildren(draw(width));
  }).observe(holder);
  return holder;
}
