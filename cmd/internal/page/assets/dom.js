// Helpers. All text goes through text nodes: what a transaction contains can't
// become markup.

export const $ = (id) => document.getElementById(id);

// el makes an element: its name with classes ("td.n"), properties and
// attributes, and what is in it.
export function el(name, attributes, ...content) {
  const [tag, ...classes] = name.split(".");
  const e = document.createElement(tag);
  if (classes.length) e.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value !== undefined && value !== false) e.setAttribute(key, value === true ? "" : value);
  }
  e.append(...content.flat().filter((c) => c !== undefined && c !== null && c !== ""));
  return e;
}

const svgNamespace = "http://www.w3.org/2000/svg";

export function svg(name, attributes) {
  const e = document.createElementNS(svgNamespace, name);
  for (const [key, value] of Object.entries(attributes ?? {})) e.setAttribute(key, value);
  return e;
}

// set changes an element's text only if it is another, so that screen readers
// and selections are left alone.
export function set(e, text) {
  if (e.textContent !== text) e.textContent = text;
}

// count returns a number with its thousands apart: a number, a BigInt, or the
// digits of one.
export function count(n) {
  return (typeof n === "string" ? BigInt(n) : n).toLocaleString("en-US");
}

// less returns the difference of two txids as a number.
export const less = (a, b) => Number(BigInt(a) - BigInt(b));

export const plural = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;

// visible shows control characters and what would change the direction of the
// text around it.
export function visible(text) {
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g,
    (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
}

// clock returns the time of day with milliseconds.
export const clock = (time) => time.slice(11, 23);

export const linkTo = {
  transaction: (p, txid) => `#/transaction/${p}/${txid}`,
  lock: (p, lock) => `#/lock/${p}/${encodeURIComponent(lock)}`,
};

export const txidLink = (p, txid, label) =>
  el("a", { href: linkTo.transaction(p, txid), "aria-label": label ?? `transaction ${txid} of partition ${p}` }, count(txid));

export const lockLink = (p, lock) => el("a.lock", { href: linkTo.lock(p, lock) }, visible(lock));
