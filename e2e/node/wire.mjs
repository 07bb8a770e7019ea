// What both programs of this folder need: making headers and taking a read's
// answers. The rest is the NATS client's own API.
import { createInbox, headers } from "@nats-io/transport-node";

// transaction makes an append's options. Values that are lists repeat.
export function transaction(fields) {
  const h = headers();
  for (const [key, value] of Object.entries(fields)) {
    for (const one of [value].flat()) h.append(key, one);
  }
  return { headers: h, timeout: 60_000 };
}

// append sends one transaction and gives its reply.
export async function append(nc, partition, payload, fields) {
  const answer = await nc.request(`cantus.append.${partition}`, payload, transaction(fields));
  return answer.json();
}

// read gives a read's transactions and the message that ends it.
export async function read(nc, partition, request) {
  const inbox = createInbox();
  const sub = nc.subscribe(inbox);
  nc.publish(`cantus.read.${partition}`, JSON.stringify(request), { reply: inbox });
  const got = [];
  for await (const m of sub) {
    if (m.headers?.has("Nats-Service-Error-Code")) throw new Error(`read refused: ${m.string()}`);
    if (m.headers?.code || m.headers?.has("Cantus-Next")) {
      if (m.headers.code !== 204) throw new Error(`the read ends with the status ${m.headers.code}`);
      sub.unsubscribe();
      return { got, end: m };
    }
    got.push(m);
  }
  throw new Error("the read did not end");
}

export const txidOf = (m) => Number(m.headers.get("Cantus-Txid"));
