// read yields the transactions of a partition from a txid on: one request, many
// answers, the last of which has the status 204 or an error. Everything else
// of the protocol is plain request and reply. Each answer names the transaction that
// was sent before it: where one is missing, "lost" is thrown, and the next read
// begins behind the last one that came. The request or its answers may also be lost
// with a connection: when nothing comes in time "lost" is thrown, too.
import { createInbox } from "@nats-io/transport-node";

const patience = 5000; // milliseconds between two answers, more than a request's wait

export async function* read(nc, partition, request) {
  const inbox = createInbox();
  const answers = nc.subscribe(inbox);
  const late = setTimeout(() => answers.unsubscribe(), patience); // ends the loop
  nc.publish(`cantus.read.${partition}`, JSON.stringify(request), { reply: inbox });
  let last = 0;
  const whole = (before) => {
    if (Number(before) !== last) throw new Error(`lost: ${before} was sent, ${last} came`);
  };
  try {
    for await (const m of answers) {
      late.refresh();
      const refused = m.headers?.get("Nats-Service-Error");
      if (refused) throw new Error(refused);
      // The status is NATS's own, or a header where something relays the answers.
      const status = m.headers?.code || Number(m.headers?.get("Status"));
      if (status === 503) throw new Error(`nobody answers for partition ${partition}`);
      if (status === 204) return whole(m.headers.get("Cantus-Last"));
      whole(m.headers.get("Cantus-Previous"));
      last = Number(m.headers.get("Cantus-Txid"));
      yield { txid: last, kind: m.headers.get("Cantus-Kind"), text: m.string() };
    }
  } finally {
    clearTimeout(late);
    answers.unsubscribe();
  }
  throw new Error(`lost: no answer came within ${patience} ms`);
}
