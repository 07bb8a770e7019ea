// The tail of the log, and conflicts.

import { $, clock, count, el, lockLink, txidLink, visible } from "./dom.js";

const most = 300; // rows that are kept

const modes = [["write_locks", "w"], ["read_locks", "r"], ["append_locks", "a"]];
const modeNames = { w: "write", r: "read", a: "append" };

function locksOf(t) {
  const all = modes.flatMap(([field, letter]) => (t[field] ?? []).map((lock) =>
    el("span", {}, el("abbr.mode", { title: `${modeNames[letter]} lock` }, letter + ":"), lockLink(t.partition, lock))));
  if (t.more_locks) all.push(el("span.mode", {}, `and ${count(t.more_locks)} more`));
  return el("span.lockset", {}, ...all.flatMap((lock, i) => i ? [" ", lock] : [lock]));
}

// transactionRow returns a transaction as a row.
export function transactionRow(t, withPayload = true) {
  return el("li", { class: "row", "data-at": `${t.partition}/${t.txid}` },
    el("time.at", { datetime: t.time, title: t.time }, clock(t.time)),
    el("span.p", { title: `partition ${t.partition}` }, String(t.partition)),
    el("span.id", {}, txidLink(t.partition, t.txid)),
    el("span.kind", {}, visible(t.kind)),
    locksOf(t),
    el("span.text", {}, withPayload ? visible(t.payload) : ""));
}

function gapRow(g) {
  const n = BigInt(g.last) - BigInt(g.first) + 1n;
  return el("li.gap", {}, `partition ${g.partition}: ${count(n)} left out, ${count(g.first)} to ${count(g.last)}: ${g.because}`);
}

// list is a list of rows, the newest first, which can be paused.
class List {
  constructor(list) {
    this.list = list;
    this.waiting = undefined; // rows that came while it is paused
    this.dropped = 0;
  }

  add(row) {
    if (this.waiting) {
      this.waiting.push(row);
      if (this.waiting.length > most) {
        this.waiting.shift();
        this.dropped++;
      }
      return;
    }
    if (this.calm()) row.classList.add("fresh");
    this.list.prepend(row);
    while (this.list.children.length > most) this.list.lastElementChild.remove();
  }

  // calm reports whether few rows come, so that a new one may be marked.
  calm() {
    const now = Date.now();
    this.recent = [...(this.recent ?? []).filter((at) => now - at < 1000), now].slice(-5);
    return this.recent.length < 5;
  }

  pause() { this.waiting ??= []; }

  resume() {
    const rows = this.waiting ?? [], dropped = this.dropped;
    this.waiting = undefined;
    this.dropped = 0;
    if (dropped) this.add(el("li.gap", {}, `${count(dropped)} rows left out while paused`));
    for (const row of rows) this.add(row);
  }
}

export const tail = new List($("rows"));
export const after = new Map(); // the last txid that was seen of each partition

export function clearTail() {
  $("rows").replaceChildren();
  $("notices").replaceChildren();
  tail.waiting = tail.waiting && [];
  tail.dropped = 0;
  after.clear();
  $("none").hidden = false;
}

const conflicts = new List($("conflict-rows"));

function conflictRow(c) {
  const all = (c.conflicts ?? []).map((x) => el("div", {},
    el("span.mode", {}, x.mode, " "), lockLink(c.partition, x.lock),
    x.forgotten ? ` could not be looked up: it counts as recorded by ${count(x.txid)}` : " was recorded by ", x.forgotten ? "" : txidLink(c.partition, x.txid)));
  if (all.length === 0) all.push(el("div", {}, visible(c.text ?? ""))); // of a condition
  const left = c.left_out ? el("div.gap", {}, `${count(c.left_out)} conflicts before this one left out`) : "";
  return el("li", {}, el("div", {}, el("time.at", { datetime: c.time, title: c.time }, clock(c.time)), ` partition ${c.partition}`,
    c.msg_id ? el("span.mode", {}, " message id ", el("span.lock", {}, visible(c.msg_id))) : ""), ...all, left);
}

// take shows an event of the stream.
export function take(event, data) {
  switch (event) {
    case "transaction":
      after.set(data.partition, data.txid);
      $("none").hidden = true;
      tail.add(transactionRow(data));
      break;
    case "gap":
      after.set(data.partition, data.last);
      $("none").hidden = true;
      tail.add(gapRow(data));
      break;
    case "notice":
      notice(data);
      break;
    case "conflict":
      $("no-conflicts").hidden = true;
      conflicts.add(conflictRow(data));
      break;
  }
}

function notice(n) {
  for (const old of [...$("notices").children]) {
    if (n.partition !== undefined && old.dataset.partition === String(n.partition)) old.remove();
  }
  if (!n.text) return; // what was the matter with the partition has passed
  const about = n.partition === undefined ? "" : `partition ${n.partition}: `;
  const item = el("li", { "data-partition": n.partition }, about + visible(n.text));
  const same = [...$("notices").children].find((old) => old.textContent === item.textContent);
  same?.remove();
  $("notices").prepend(item);
  while ($("notices").children.length > 4) $("notices").lastElementChild.remove();
}
