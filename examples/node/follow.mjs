// Prints every transaction of a partition, from the first one on and then as
// they commit; with a third argument, only that many:
//
//	node follow.mjs nats://127.0.0.1:4222 0
//
// Install the NATS client first, with Node.js 22 or newer: npm ci
import { connect } from "@nats-io/transport-node";
import { read } from "./read.mjs";

const [url, partition, count = Infinity, ...rest] = process.argv.slice(2);
if (!/^\d+$/.test(partition ?? "") || !(count >= 0) || rest.length > 0) {
  console.error("usage: node follow.mjs URL PARTITION [COUNT], such as: node follow.mjs nats://127.0.0.1:4222 0");
  process.exit(2);
}
const nc = await connect({ servers: url, maxReconnectAttempts: -1 }).catch((err) => {
  console.error(`no connection to ${url}: ${err.message}; is a node running there?`);
  process.exit(1);
});
let last = 0; // a service stores it with the effects of the transactions
while (last < count) {
  try {
    const max = Math.min(256, count - last);
    for await (const tx of read(nc, partition, { from: last + 1, max, wait: "2s" })) {
      if (tx.txid !== last + 1) break; // some were lost: read again
      console.log(tx.txid, tx.kind, tx.text);
      last = tx.txid;
    }
  } catch (err) {
    if (/^(trimmed|ahead|bad_request)/.test(err.message)) throw err;
    if (/^nobody answers/.test(err.message)) await mustExist(partition);
    await new Promise((resolve) => setTimeout(resolve, 500)); // perhaps there is no leader yet
  }
}
await nc.close();

// mustExist throws if the partition does not exist. Nobody answers for such a
// partition, nor for one that has no leader.
async function mustExist(partition) {
  const info = await nc.request("cantus.info").then((m) => m.json(), () => undefined);
  if (partition >= info?.partitions) {
    const all = info.partitions;
    throw new Error(`partition ${partition} does not exist: this cluster has ${all} (0 to ${all - 1})`);
  }
}
