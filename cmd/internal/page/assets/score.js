// The status: the sentence, and the partitions as lines of a score. Bars above
// a line are transactions a second, what hangs below it is the lag of the
// replica that is furthest behind.

import { $, count, el, less, plural, set, svg, visible } from "./dom.js";

const window_ = 120; // seconds of a chart
const height = 40, line = 27; // of a chart, and of its staff line
const first = 32; // partitions that are shown without being asked for

const history = new Map(); // samples of each partition: {at, mark, rate, lag}
const rows = new Map();
let all = false;

const seconds = (ms) => ms / 1000;

// sample takes in what a status says of a partition.
function sample(p, now) {
  const past = history.get(p.partition) ?? [];
  history.set(p.partition, past);
  const last = past.at(-1);
  const known = p.leader !== "";
  let rate = 0;
  if (known && last?.known) rate = Math.max(0, less(p.mark, last.mark)) / Math.max(seconds(now - last.at), 0.001);
  // The leader does not know how far a replica is that it does not hear.
  const lags = p.replicas.filter((r) => r.name !== p.leader && r.state !== "away").map((r) => Math.max(0, less(p.mark, r.mark)));
  past.push({ at: now, known, mark: known ? p.mark : last?.mark ?? "0", rate, lag: known ? Math.max(0, ...lags) : 0 });
  while (past.length && seconds(now - past[0].at) > window_ + 5) past.shift();
  return past;
}

// mean returns the rate of the last seconds.
function mean(past) {
  const recent = past.slice(-6).filter((s) => s.known);
  if (recent.length < 2) return undefined;
  const time = seconds(recent.at(-1).at - recent[0].at);
  return Math.max(0, less(recent.at(-1).mark, recent[0].mark)) / time;
}

function rateText(rate) {
  if (rate === undefined) return "–";
  return rate >= 100 || rate === 0 ? count(Math.round(rate)) : rate.toFixed(1);
}

function draw(row, past, now, most, furthest) {
  let up = "", down = "", absent = "";
  for (let i = 1; i < past.length; i++) {
    const x = window_ - seconds(now - past[i].at), from = Math.max(0, window_ - seconds(now - past[i - 1].at));
    if (x <= 0) continue;
    const w = Math.max(0.35, (x - from) * 0.8);
    if (!past[i].known) absent += `M${from} ${line}h${x - from}`;
    if (past[i].rate > 0) up += `M${from} ${line}v${-Math.max(1.5, past[i].rate / most * (line - 2)).toFixed(2)}h${w}V${line}z`;
    if (past[i].lag > 0) down += `M${from} ${line + 2}v${Math.max(1.5, past[i].lag / furthest * (height - line - 3)).toFixed(2)}h${w}V${line + 2}z`;
  }
  row.up.setAttribute("d", up);
  row.down.setAttribute("d", down);
  row.absent.setAttribute("d", absent);
}

function makeRow(partition) {
  const chart = svg("svg", { viewBox: `0 0 ${window_} ${height}`, preserveAspectRatio: "none", role: "img" });
  const row = {
    chart, up: svg("path", { class: "rate" }), down: svg("path", { class: "behind" }),
    absent: svg("path", { stroke: "currentColor", "stroke-width": "3", class: "absent" }),
    leader: el("td"), rate: el("td.n.rate-n"), mark: el("td.n.mark"), lag: el("td.lag"), kept: el("td.n.kept"), locks: el("td.n.locks"),
  };
  chart.append(svg("line", { class: "staff", x1: 0, x2: window_, y1: line, y2: line }), row.up, row.down, row.absent);
  row.tr = el("tr", {}, el("th.n", { scope: "row" }, String(partition)), row.leader, el("td.chart", {}, chart), row.rate, row.mark, row.lag, row.kept, row.locks);
  rows.set(partition, row);
  return row;
}

function replicaText(r, p) {
  if (r.state === "away") return `${r.name} away`;
  const text = `${r.name} ${count(Math.max(0, less(p.mark, r.mark)))}`;
  return r.voter ? text : text + " no vote";
}

function fill(row, p, past) {
  row.leader.replaceChildren(...(p.leader ? [visible(p.leader), el("span.term", {}, ` term ${count(p.term)}`)] : []),
    ...(p.trouble ? [el("span.trouble", {}, (p.leader ? " " : "") + p.trouble)] : []));
  const rate = rateText(mean(past));
  set(row.rate, rate);
  set(row.mark, p.leader ? count(p.mark) : "–");
  const others = p.replicas.filter((r) => r.name !== p.leader);
  row.lag.replaceChildren(...(others.length ? others.map((r) => el("span.replica", {}, visible(replicaText(r, p)))) : ["no other replica"]));
  set(row.kept, p.leader ? count(p.first) : "–");
  set(row.locks, p.leader ? count(p.locks) : "–");
  const furthest = Math.max(0, ...past.map((s) => s.lag));
  row.chart.setAttribute("aria-label", `${rate} transactions a second; furthest lag in two minutes ${count(furthest)}`);
}

function showPartitions(status, now) {
  const shown = all ? status.partitions : status.partitions.filter((p, i) => i < first || p.trouble);
  let most = 1, furthest = 1;
  for (const p of status.partitions) {
    for (const s of sample(p, now)) {
      most = Math.max(most, s.rate);
      furthest = Math.max(furthest, s.lag);
    }
  }
  const body = $("partitions");
  const wanted = shown.map((p) => {
    const row = rows.get(p.partition) ?? makeRow(p.partition), past = history.get(p.partition);
    fill(row, p, past);
    draw(row, past, now, most, furthest);
    return row.tr;
  });
  if (wanted.length !== body.children.length || wanted.some((tr, i) => tr !== body.children[i])) body.replaceChildren(...wanted);
  const total = status.partitions.reduce((sum, p) => sum + (mean(history.get(p.partition)) ?? 0), 0);
  set($("legend"), `${rateText(total)} transactions/s in all. Above a line: transactions/s, the tallest ${rateText(most)}. ` +
    `Below it: the lag of the furthest replica in transactions, the deepest ${count(furthest)}.`);
  const button = $("all-partitions");
  button.hidden = all || shown.length === status.partitions.length;
  set(button, `show all ${count(status.partitions.length)} partitions`);
}

$("all-partitions").addEventListener("click", () => { all = true; });

function ago(since, now) {
  const s = Math.max(0, Math.round((new Date(now) - new Date(since)) / 1000));
  if (s < 120) return `${s} s`;
  if (s < 7200) return `${Math.floor(s / 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} days`;
}

function showNodes(status) {
  $("nodes").replaceChildren(...(status.nodes ?? []).map((n) => el("tr", {},
    el("th", { scope: "row" }, visible(n.name), n.name === status.node ? el("span.term", {}, " this node") : "", n.standby ? " standby" : ""),
    el(n.up ? "td" : "td.trouble", {}, visible(n.state)),
    el("td.n.leads", {}, count(n.leading)), el("td.n.of", {}, count(n.replicas)),
    el("td.runs", {}, n.since ? ago(n.since, status.time) : "–"), el("td", {}, visible(n.version ?? "–")), el("td.lost", {}, n.if_lost ?? "nothing stops"))));
}

export function showStatus(status) {
  const now = Date.now();
  if (status.error) {
    set($("health"), "It is not known whether writes are safe.");
    set($("sign"), "▲");
    set($("stream"), status.error);
    $("stream").hidden = false;
    return;
  }
  set($("health"), status.text);
  set($("sign"), status.safe ? "" : "▲");
  set($("where"), `cluster ${status.cluster}, ${plural(status.partitions.length, "partition")}, version ${status.version}`);
  set($("as-of"), `as node ${status.answered_by || status.node} sees it at ${status.time.slice(11, 19)}`);
  document.title = `${status.safe ? "" : "▲ "}${status.cluster} · Cantus`;
  for (const s of document.querySelectorAll(".score, .nodes")) s.hidden = false;
  showPartitions(status, now);
  showNodes(status);
}
