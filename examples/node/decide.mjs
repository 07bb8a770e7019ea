// decide makes a decision from the transactions that a query selects, and appends
// it unless one of them is new by then: it needs no view. It is two requests, a read
// and an append, and both have the query's items. rule takes the transactions and
// returns { kind, payload, locks }, or throws. It is called again after a conflict,
// with what is new. decide returns the txid.
import { append } from "./append.mjs";
import { read } from "./read.mjs";

export async function decide(nc, partition, items, rule) {
  const known = [];
  for (let mark = 0; ; ) {
    mark = await readAll(nc, partition, items, mark + 1, known);
    const { kind, payload, locks } = rule(known);
    const { txid, error } = await append(nc, partition, JSON.stringify(payload), {
      "Cantus-Kind": kind,
      "Cantus-Append-Lock": locks.join(","), // others' queries find it by these
      "Cantus-High-Water-Mark": String(mark),
      "Cantus-Unless": JSON.stringify(items),
    });
    if (!error) return txid;
    if (error.reason !== "conflict") throw new Error(error.message);
  }
}

// readAll adds the transactions from a txid on to known, and returns the high-water
// mark up to which they are all there.
async function readAll(nc, partition, items, from, known) {
  for (;;) {
    const end = {};
    try {
      for await (const tx of read(nc, partition, { from, query: items }, end)) {
        known.push(tx);
        from = tx.txid + 1;
      }
      from = end.next; // a read goes through a stretch of the log, and may end early
      if (from > end.mark) return end.mark;
    } catch (err) {
      if (/^(trimmed|ahead|bad_request)/.test(err.message)) throw err;
      await new Promise((resolve) => setTimeout(resolve, 200)); // lost, or there is no leader yet
    }
  }
}
