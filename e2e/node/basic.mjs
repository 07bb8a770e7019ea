// One append, one read, one conflict and one repeat:
//
//	node basic.mjs nats://127.0.0.1:4222
import assert from "node:assert/strict";
import { connect } from "@nats-io/transport-node";
import { append, read, transaction, txidOf } from "./wire.mjs";

const nc = await connect({ servers: process.argv[2] });
const fields = {
  "Cantus-Write-Lock": "account.42, journal.>",
  "Cantus-High-Water-Mark": "0",
  "Cantus-Kind": "deposit",
  "Nats-Msg-Id": "js-1",
  "Trace": "größer",
};

const fed = [];
nc.subscribe("cantus.feed.0.deposit", { callback: (err, m) => fed.push(err ?? m) });
await nc.flush();

const first = await append(nc, 0, "hello from JavaScript", fields);
assert.deepEqual({ ...first, time: "" }, { partition: 0, txid: 1, time: "" });
assert.ok(!Number.isNaN(Date.parse(first.time)), first.time);

const { got, end } = await read(nc, 0, { from: 1, wait: "30s" });
assert.equal(got.length, 1);
assert.equal(got[0].string(), "hello from JavaScript");
assert.deepEqual(got[0].headers.values("Cantus-Write-Lock"), ["account.42,journal.>"]);
for (const [key, value] of Object.entries({
  "Cantus-Txid": "1", "Cantus-Partition": "0", "Cantus-Kind": "deposit", "Cantus-High-Water-Mark": "0",
  "Cantus-Msg-Id": "js-1", "Nats-Msg-Id": "cantus.0.1", "Cantus-Time": first.time, "Trace": "größer",
})) assert.equal(got[0].headers.get(key), value, key);
assert.equal(end.headers.get("Cantus-Next"), "2");
assert.equal(end.headers.get("Cantus-High-Water-Mark"), "1");

const repeat = await append(nc, 0, "hello from JavaScript", fields);
assert.deepEqual(repeat, { ...first, duplicate: true });

const stale = transaction({ "Cantus-Read-Lock": "journal.2026", "Cantus-High-Water-Mark": "0" });
const refused = await nc.request("cantus.append.0", "too late", stale);
const { error } = refused.json();
assert.equal(refused.headers.get("Nats-Service-Error-Code"), "409");
assert.equal(error.code, 409);
assert.equal(error.reason, "conflict");
assert.equal(error.lock, "journal.2026");
assert.equal(error.txid, 1);
assert.deepEqual(error.conflicts, [{ lock: "journal.2026", mode: "read", txid: 1 }]);

await nc.flush();
assert.deepEqual(fed.map(txidOf), [1]);
await nc.close();
console.log("ok");
