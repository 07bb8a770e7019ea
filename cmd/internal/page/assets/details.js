// One transaction, or one lock, as the address says after the #.

import { $, count, el, linkTo, lockLink, plural, txidLink, visible } from "./dom.js";
import { ask } from "./api.js";
import { transactionRow } from "./log.js";

let controller = new AbortController();
let opener; // what had the focus before

function open(title, ...content) {
  if ($("details").hidden) opener = document.activeElement;
  $("details").hidden = false;
  $("details-title").textContent = title;
  $("details-body").replaceChildren(...content);
}

export function close() {
  controller.abort();
  const row = document.querySelector('.row[aria-current="true"]');
  row?.removeAttribute("aria-current");
  if ($("details").hidden) return;
  $("details").hidden = true;
  if (location.hash) history.pushState(null, "", location.pathname);
  (opener?.isConnected ? opener : row?.querySelector("a") ?? $("transactions")).focus({ preventScroll: true });
}

// indented returns JSON with a line for each value, and every number and string
// as it is written; undefined for what is no JSON.
export function indented(text) {
  try { JSON.parse(text); } catch { return undefined; }
  let depth = 0;
  const line = () => "\n" + "  ".repeat(depth);
  return text.trim().replace(/"(?:[^"\\]|\\.)*"|[{[]\s*[}\]]|[{}[\],:]|\s+/g, (token) => {
    switch (token[0]) {
      case "{": case "[":
        if (token.length > 1) return token[0] + token.at(-1);
        depth++;
        return token + line();
      case "}": case "]":
        depth--;
        return line() + token;
      case ",": return token + line();
      case ":": return token + " ";
      case '"': return token;
    }
    return "";
  });
}

const field = (name, ...value) => [el("dt", {}, name), el("dd", {}, ...value)];

function fields(t) {
  const all = [...field("time", t.time), ...field("kind", visible(t.kind))];
  if (t.high_water_mark !== undefined) all.push(...field("high-water mark", `${count(t.high_water_mark)}: its writer had applied the partition up to there`));
  if (t.atomic) all.push(...field("atomic batch", `${t.atomic}: these transactions committed together`));
  if (t.session) all.push(...field("session", el("span.lock", {}, visible(t.session)), `, number ${count(t.session_seq)}`));
  if (t.move) all.push(...field("moves", el("span.lock", {}, visible(t.move))));
  if (t.msg_id) all.push(...field("message id", el("span.lock", {}, visible(t.msg_id))));
  for (const [name, value] of t.headers ?? []) all.push(...field(el("span.lock", {}, visible(name)), el("span.lock", {}, visible(value))));
  return el("dl", {}, ...all);
}

function payload(t) {
  const size = `payload, ${plural(t.bytes, "byte")}`;
  const what = t.binary ? `${size}, not text` : size;
  const title = el("p.note", {}, what, t.cut ? ": the beginning; cantus get --payload writes all of it" : "");
  if (t.bytes === 0) return [title];
  const pre = el("pre", { tabindex: "0", "aria-label": "payload" }, visible(t.payload));
  const pretty = t.binary || t.cut ? undefined : indented(t.payload);
  if (pretty === undefined || pretty === t.payload) return [title, pre];
  const button = el("button", { type: "button", "aria-pressed": "false" }, "indent");
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(on));
    pre.textContent = visible(on ? pretty : t.payload);
  });
  return [title, pre, button];
}

const modes = [["write_locks", "write"], ["read_locks", "read"], ["append_locks", "append"]];
const whatModes = {
  write: "checked, and recorded", read: "checked, not recorded", append: "recorded, not checked",
};

// side shows one direction along a lock.
function side(d, p, word) {
  if (d.found) return [el("small", {}, word + " "), txidLink(p, d.found.txid), el("small", {}, " " + visible(d.found.kind))];
  return [el("small", {}, d.exact ? `none ${word}` : `none found ${word}`)];
}

// searched says how far a search has gone, if it has found nothing.
function searched(a, txid) {
  const all = [];
  for (const [word, d] of [["Before", a.before], ["After", a.after]]) {
    const parts = [];
    if (d.because) parts.push(d.because);
    if (d.checked) parts.push(`none from ${count(d.checked)} to ${count(BigInt(txid) - 1n)}, or it would have been refused`);
    const some = BigInt(d.last) >= BigInt(d.first) && d.first !== "0";
    if (!d.found && some) parts.push(`searched ${count(d.first)} to ${count(d.last)}${d.exact ? "" : ", not further"}`);
    if (parts.length) all.push(`${word}: ${parts.join("; ")}.`);
  }
  return all.join(" ");
}

function thread(t, mode, lock, signal) {
  const before = el("div.end", {}, el("small", {}, "searching")), after = el("div.end", {}, el("small", {}, "searching"));
  const note = el("p.note");
  const query = { partition: t.partition, txid: t.txid, lock };
  if (mode !== "append" && t.high_water_mark !== undefined) query.mark = t.high_water_mark;
  ask("around", query, signal).then((a) => {
    before.replaceChildren(...side(a.before, t.partition, "before"));
    after.replaceChildren(...side(a.after, t.partition, "after"));
    note.textContent = searched(a, t.txid);
  }).catch((err) => {
    if (signal.aborted) return;
    before.replaceChildren();
    after.replaceChildren();
    note.textContent = err.message;
  });
  return el("li", {}, el("div", {}, el("span.mode", { title: whatModes[mode] }, `${mode} `), lockLink(t.partition, lock)),
    el("div.chain", {}, before, el("span.here", {}, count(t.txid)), after), note);
}

async function showTransaction(p, txid, signal) {
  open(`Transaction ${count(txid)} of partition ${p}`, el("p.note", {}, "looking it up"));
  const t = await ask("transaction", { partition: p, txid }, signal);
  const locks = modes.flatMap(([fieldName, mode]) => (t[fieldName] ?? []).map((lock) => [mode, lock]));
  const more = el("button", { type: "button" }, `and ${plural(locks.length - 6, "further lock")}`);
  const list = el("ul.thread", {}, ...locks.slice(0, 6).map(([mode, lock]) => thread(t, mode, lock, signal)));
  more.addEventListener("click", () => {
    list.append(...locks.slice(6).map(([mode, lock]) => thread(t, mode, lock, signal)));
    more.remove();
  });
  const around = el("p.crumbs", {});
  if (BigInt(txid) > 1n) around.append(el("a", { href: linkTo.transaction(p, BigInt(txid) - 1n) }, "previous"));
  around.append(el("a", { href: linkTo.transaction(p, BigInt(txid) + 1n) }, "next"));
  open(`Transaction ${count(txid)} of partition ${p}`, around, fields(t),
    el("p.note", {}, locks.length ? "Locks, and who recorded an overlapping one before and after:" : "No locks: it always commits, and conflicts with nothing."),
    list, ...(locks.length > 6 ? [more] : []), ...payload(t));
}

// wider returns the subtrees that a lock is in.
function wider(lock) {
  const tokens = lock.split(".");
  if (tokens.at(-1) === ">") tokens.pop();
  const all = [];
  for (let n = tokens.length - 1; n >= 0; n--) all.push([...tokens.slice(0, n), ">"].join("."));
  return all.filter((l) => l !== lock);
}

function lockText(l) {
  if (!l.recorded.length && l.exact && l.newest === undefined) return "No transaction has recorded this lock, or one that overlaps it.";
  const span = `${count(l.first)} to ${count(l.last)}`;
  const rest = l.exact ? "" : " There may be older ones.";
  const floor = l.floor !== "0" ? ` The partition's lock table is exact above its floor, ${count(l.floor)}.` : "";
  return `Searched ${span}: ${l.recorded.length ? plural(l.recorded.length, "transaction") : "none"}.${rest}${floor}`;
}

async function showLock(p, lock, signal) {
  const title = `Lock ${visible(lock)} in partition ${p}`;
  open(title, el("p.note", {}, "searching"));
  const list = el("ol.rows", { "aria-label": "Transactions that recorded it, newest first" });
  const note = el("p.note"), more = el("button", { type: "button" }, "search further");
  const search = async (below) => {
    const l = await ask("lock", { partition: p, lock, below }, signal);
    list.append(...l.recorded.map((t) => transactionRow(t, false)));
    note.textContent = lockText(l);
    more.hidden = l.exact || l.first === "0" || BigInt(l.first) <= 1n;
    more.dataset.below = l.first;
  };
  more.addEventListener("click", () => search(more.dataset.below).catch((err) => { if (!signal.aborted) note.textContent = err.message; }));
  await search("0");
  const crumbs = wider(lock).map((l) => lockLink(p, l));
  open(title, crumbs.length ? el("p.crumbs", {}, el("span.note", {}, "in "), ...crumbs) : "", note, list, more);
}

// route shows what the address says.
export async function route() {
  const [, what, p, id] = location.hash.split("/");
  if (!/^\d+$/.test(p ?? "") || !id) return close();
  controller.abort();
  controller = new AbortController();
  const { signal } = controller;
  document.querySelector('.row[aria-current="true"]')?.removeAttribute("aria-current");
  let shown;
  if (what === "transaction" && /^\d+$/.test(id)) {
    document.querySelector(`.row[data-at="${p}/${id}"]`)?.setAttribute("aria-current", "true");
    shown = showTransaction(p, id, signal);
  } else if (what === "lock") {
    shown = showLock(p, decoded(id), signal);
  } else {
    return close();
  }
  // At once: when the answer is there, the viewer may be somewhere else.
  $("details-title").focus({ preventScroll: true });
  const { top } = $("details").getBoundingClientRect();
  if (top < 0 || top > innerHeight * 0.8) $("details").scrollIntoView({ block: "start" });
  try {
    await shown;
  } catch (err) {
    if (!signal.aborted) $("details-body").replaceChildren(el("p.trouble", { role: "alert" }, err.message));
  }
}

// decoded returns a part of the address as text.
function decoded(part) {
  try { return decodeURIComponent(part); } catch { return part; }
}
