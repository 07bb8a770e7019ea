// Adds to a counter in the log, and prints its new value:
//
//	node transact.mjs nats://127.0.0.1:4222 visits 1
//
// Install the NATS client first, with Node.js 22 or newer: npm ci
//
// However many run concurrently, no addition is lost.
import { connect } from "@nats-io/transport-node";
import { append } from "./append.mjs";
import { read } from "./read.mjs";
import { token } from "./token.mjs";

const [url, counter, amount, ...rest] = process.argv.slice(2);
if (!/^[+-]?\d+$/.test(amount ?? "") || rest.length > 0) {
  console.error("usage: node transact.mjs URL COUNTER AMOUNT, such as: node transact.mjs nats://127.0.0.1:4222 visits 1");
  process.exit(2);
}
const nc = await connect({ servers: url, maxReconnectAttempts: -1 }).catch((err) => {
  console.error(`no connection to ${url}: ${err.message}; is a node running there?`);
  process.exit(1);
});

// The view: the value of every counter, up to the txid last.
const counters = new Map();
let last = 0;
async function follow(txid) {
  while (last < txid) {
    try {
      for await (const tx of read(nc, 0, { from: last + 1 })) {
        if (tx.txid !== last + 1) break;
        if (tx.kind === "count") {
          const { counter, value } = JSON.parse(tx.text);
          counters.set(counter, value);
        }
        last = tx.txid;
      }
    } catch (err) {
      if (/^(trimmed|ahead|bad_request)/.test(err.message)) throw err;
      await new Promise((resolve) => setTimeout(resolve, 200)); // lost, or there is no leader yet
    }
  }
}

for (;;) {
  const value = (counters.get(counter) ?? 0) + Number(amount);
  const { error } = await append(nc, 0, JSON.stringify({ counter, value }), {
    "Cantus-Kind": "count",
    "Cantus-Write-Lock": `counter.${token(counter)}`,
    "Cantus-High-Water-Mark": String(last),
  });
  if (!error) {
    console.log(counter, value);
    break;
  }
  if (error.reason !== "conflict") throw new Error(error.message);
  await follow(error.txid); // and compute it again
}
await nc.close();
