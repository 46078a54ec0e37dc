// Formats of numbers, sizes and times.

export const count = n => n >= 1e9 ? +(n / 1e9).toPrecision(3) + " G" : n >= 1e6 ? +(n / 1e6).toPrecision(3) + " M" : n >= 1e4 ? +(n / 1e3).toPrecision(3) + " k" : String(Math.round(n));
export const size = n => n >= 1073741824 ? +(n / 1073741824).toPrecision(3) + " GiB" : n >= 1048576 ? +(n / 1048576).toPrecision(3) + " MiB" : n >= 1024 ? +(n / 1024).toPrecision(3) + " KiB" : Math.round(n) + " B";
export const percent = x => x >= .9995 ? "100%" : x >= .0995 ? Math.round(x * 100) + "%" : x >= .001 ? +(x * 100).toPrecision(2) + "%" : "<0.1%";
export const several = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
export const visible = text => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍").replace(/ /g, "·") || "∅";

export function rate(x) { return x >= 99.5 ? count(x) : x >= 9.95 ? x.toFixed(0) : x.toFixed(1); }

export function short(x) {
  if (x === null || !isFinite(x)) return "–";
  const a = Math.abs(x);
  if (Number.isInteger(x) && a < 1e5) return String(x);
  return a !== 0 && (a < .001 || a >= 1e5) ? x.toExponential(1) : String(+x.toPrecision(3));
}

export function duration(seconds) {
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s % 3600 / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s % 86400 / 3600)} h`;
}

export function ago(time) {
  const s = (Date.now() - time) / 1000;
  if (s < 60) return "now";
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
  return day(time);
}

export const day = time => new Date(time).toLocaleDateString(undefined, { day: "numeric", month: "short" });
