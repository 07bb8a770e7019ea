// Six decisions that no single name stands for, as the examples of dcb.events
// make them. Each is made from three connections at once, in a partition of its own:
//
//	CANTUS_SERVER=nats://127.0.0.1:4222 node --test dcb.test.mjs
//
// The log must be empty, and have six partitions.
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { connect } from "@nats-io/transport-node";
import { append } from "./append.mjs";
import { decide } from "./decide.mjs";
import { token } from "./token.mjs";

const servers = process.env.CANTUS_SERVER;
const connections = await Promise.all([1, 2, 3].map(() => connect({ servers, maxReconnectAttempts: -1 })));
after(() => Promise.all(connections.map((nc) => nc.close())));

class Refused extends Error {}

// must throws unless a rule allows something.
function must(allowed) {
  if (!allowed) throw new Refused();
}

// race makes a decision n times at once, and returns how many passed.
async function race(n, decision) {
  const all = await Promise.allSettled(Array.from({ length: n }, (_, i) => decision(connections[i % connections.length], i)));
  for (const { reason } of all) if (reason && !(reason instanceof Refused)) throw reason;
  return all.filter((one) => one.status === "fulfilled").length;
}

const events = (known, kind) => known.filter((tx) => tx.kind === kind).map((tx) => JSON.parse(tx.text));

test("a course has places, and a student takes two courses at most", async () => {
  const places = 3;
  const passed = await race(15, (nc, i) => {
    const [course, student] = [`course.${i % 3}`, `student.${Math.floor(i / 3)}`];
    const items = [course, student].map((lock) => ({ kinds: ["enrolled"], locks: [lock] }));
    return decide(nc, 0, items, (known) => {
      const enrolled = events(known, "enrolled");
      must(enrolled.filter((e) => e.course === course).length < places);
      must(enrolled.filter((e) => e.student === student).length < 2);
      return { kind: "enrolled", payload: { course, student }, locks: [course, student] };
    });
  });
  // A place stays free only if all who want it take the two other courses.
  assert.ok(passed >= 8 && passed <= 9, `${passed} enrolments`);
});

test("a username belongs to one account", async () => {
  const claim = (name, day) => race(6, (nc, i) => {
    const lock = `username.${token(name)}`;
    return decide(nc, 1, [{ kinds: ["registered", "closed"], locks: [lock] }], (known) => {
      const last = known.at(-1);
      must(!last || (last.kind === "closed" && day >= JSON.parse(last.text).day + 3));
      return { kind: "registered", payload: { account: `${day}-${i}` }, locks: [lock] };
    });
  });
  const name = "Ann O'Neill, *1990.";
  assert.equal(await claim(name, 0), 1);
  assert.equal(await claim(name, 1), 0);
  await append(connections[0], 1, '{"day":2}', { "Cantus-Kind": "closed", "Cantus-Append-Lock": `username.${token(name)}` });
  assert.equal(await claim(name, 4), 0); // it stays taken for three days
  assert.equal(await claim(name, 5), 1);
});

test("invoices are numbered without gaps", async () => {
  const numbers = [];
  await race(12, (nc) => decide(nc, 2, [{ kinds: ["invoiced"] }], (known) => {
    return { kind: "invoiced", payload: { number: events(known, "invoiced").length + 1 }, locks: ["invoices"] };
  }));
  await decide(connections[0], 2, [{ kinds: ["invoiced"] }], (known) => {
    numbers.push(...events(known, "invoiced").map((e) => e.number));
    return { kind: "closed", payload: {}, locks: ["invoices"] };
  });
  assert.deepEqual(numbers, Array.from({ length: 12 }, (_, i) => i + 1));
});

test("a token confirms an address, once, and within an hour", async () => {
  const locks = (address, code) => [`address.${token(address)}`, `optin.${code}`];
  const send = (address, code, minute) => append(connections[0], 3, JSON.stringify({ minute }), {
    "Cantus-Kind": "sent", "Cantus-Append-Lock": locks(address, code).join(","),
  });
  const confirm = (address, code, minute) => race(6, (nc) => {
    return decide(nc, 3, [{ kinds: ["sent", "confirmed"], locks: locks(address, code) }], (known) => {
      const [sent] = events(known, "sent");
      must(sent && minute < sent.minute + 60 && events(known, "confirmed").length === 0);
      return { kind: "confirmed", payload: { minute }, locks: locks(address, code) };
    });
  });
  await send("ann@example.org", "123", 0);
  await send("bob@example.org", "456", 0);
  assert.equal(await confirm("ann@example.org", "456", 1), 0); // both names are known, and not together
  assert.equal(await confirm("ann@example.org", "123", 59), 1);
  assert.equal(await confirm("ann@example.org", "123", 59), 0);
  assert.equal(await confirm("bob@example.org", "456", 60), 0);
});

test("an order has a price that was displayed a short time ago", async () => {
  const price = (price, minute) => append(connections[0], 4, JSON.stringify({ price, minute }), {
    "Cantus-Kind": "priced", "Cantus-Append-Lock": "product.tea",
  });
  const order = (displayed, minute) => race(6, (nc) => {
    return decide(nc, 4, [{ kinds: ["priced"], locks: ["product.tea"] }], (known) => {
      const prices = events(known, "priced");
      must(prices.some((e, i) => e.price === displayed && (i === prices.length - 1 || minute < prices[i + 1].minute + 10)));
      return { kind: "ordered", payload: { displayed, minute }, locks: ["orders"] };
    });
  });
  await price(100, 0);
  assert.equal(await order(100, 20), 6); // orders are not in each other's way
  await price(110, 30);
  assert.equal(await order(100, 39), 6);
  assert.equal(await order(100, 40), 0);
  assert.equal(await order(110, 40), 6);
  assert.equal(await order(120, 40), 0);
});

test("a request counts once, and needs no read for it", async () => {
  const place = (id) => race(6, async (nc) => {
    const lock = `request.${token(id)}`;
    const { error } = await append(nc, 5, "{}", {
      "Cantus-Kind": "placed",
      "Cantus-Append-Lock": lock,
      "Cantus-High-Water-Mark": "0", // never
      "Cantus-Unless": JSON.stringify({ kinds: ["placed"], locks: [lock] }),
    });
    assert.ok(!error || error.reason === "conflict", error?.message);
    must(!error);
  });
  for (const id of ["a", "A", "a ", ""]) assert.equal(await place(id), 1, id);
  assert.equal(await place("a"), 0);
});
