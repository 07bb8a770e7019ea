// The history through a node, by eight writers with a connection and a view
// each:
//
//	node replay.mjs nats://127.0.0.1:4222 PARTITION HISTORY.jsonl.gz
//
// It does what the replay in Go does, and prints what the writers were
// answered, as JSON, for the test in Go to hold against the log and the file.
import { readFileSync } from "node:fs";
import { gunzipSync } from "node:zlib";
import { connect } from "@nats-io/transport-node";
import { append, read, txidOf } from "./wire.mjs";

const [url, partition, file] = process.argv.slice(2);
const maxLocks = 64;
const writers = 8;

const encode = (s) => [...Buffer.from(s)].map((b) => `%${b.toString(16).toUpperCase().padStart(2, "0")}`).join("");
const lockName = (path) => path.split("/").map((part) => part.replace(/[.%*>,\s]/gu, encode)).join(".");

// steps cuts a line of the history into what one transaction can lock.
function steps(line) {
  const commit = JSON.parse(line);
  if (commit.files.length <= maxLocks) return [{ ...commit, id: commit.commit, payload: line }];
  const parts = Math.ceil(commit.files.length / maxLocks);
  return Array.from({ length: parts }, (_, i) => {
    const piece = { ...commit, files: commit.files.slice(i * maxLocks, (i + 1) * maxLocks), part: i + 1, parts };
    return { ...piece, id: `${commit.commit}/${i + 1}`, payload: JSON.stringify(piece) };
  });
}

// load gives the commits, each a list of steps; a step knows which ones it
// comes after, and settles once it is acknowledged.
function load() {
  const last = new Map();
  let count = 0;
  return gunzipSync(readFileSync(file)).toString().trimEnd().split("\n").map((line) =>
    steps(line).map((step) => {
      step.index = count++;
      step.acknowledged = new Promise((resolve) => (step.settle = resolve));
      step.after = [...new Set(step.files.map(([, path]) => last.get(path)).filter(Boolean))];
      for (const [, path] of step.files) last.set(path, step);
      return step;
    }));
}

// View is one writer's picture: for each path the step that touched it last.
class View {
  mark = 0;
  last = new Map();
  queue = [];

  constructor(nc) {
    this.nc = nc;
    nc.subscribe(`cantus.feed.${partition}.>`, {
      // Short on purpose: what does not fit is read later.
      callback: (err, m) => { if (!err && this.queue.length < 64) this.queue.push(m); },
    });
  }

  apply(m) {
    if (txidOf(m) !== this.mark + 1) throw new Error(`transaction ${txidOf(m)} follows ${this.mark}`);
    const { commit, part, files } = m.json();
    for (const [, path] of files) this.last.set(path, part ? `${commit}/${part}` : commit);
    this.mark++;
  }

  async takeFed() {
    while (this.queue.length) {
      const m = this.queue.shift();
      await this.heal(txidOf(m) - 1);
      if (txidOf(m) > this.mark) this.apply(m);
    }
  }

  async heal(to) {
    while (this.mark < to) {
      const { got } = await read(this.nc, partition, { from: this.mark + 1, wait: "30s" });
      for (const m of got) this.apply(m);
    }
  }
}

const commits = load();
const result = { acked: [], refusals: [] };
let next = 0;

async function commit(nc, view, step) {
  for (;;) {
    const mark = view.mark;
    const answer = await append(nc, partition, step.payload, {
      "Cantus-Write-Lock": step.files.map(([, path]) => lockName(path)),
      "Cantus-High-Water-Mark": String(mark),
      "Cantus-Kind": "commit",
      "Nats-Msg-Id": step.id,
      "Builds-On": step.files.map(([, path]) => view.last.get(path) ?? "").join(","),
    });
    if (!answer.error) return answer;
    if (answer.error.reason !== "conflict") throw new Error(JSON.stringify(answer));
    result.refusals.push({ step: step.index, mark, ...answer.error });
    await view.takeFed();
    await view.heal(answer.error.txid);
  }
}

async function writer(number) {
  const nc = await connect({ servers: url });
  const view = new View(nc);
  await nc.flush();
  while (next < commits.length) {
    for (const step of commits[next++]) {
      await Promise.all(step.after.map((before) => before.acknowledged));
      if (number % 2 === 0) await view.takeFed();
      result.acked[step.index] = await commit(nc, view, step);
      step.settle();
    }
  }
  await nc.close();
}

await Promise.all(Array.from({ length: writers }, (_, i) => writer(i)));
console.log(JSON.stringify(result));
