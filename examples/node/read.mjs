// read yields the transactions of a partition from a txid on. It sends one request
// and gets many answers, the last of which has the status 204 or an error. (The
// rest of the protocol is plain request and reply.) Each answer names the
// transaction that was sent before it: if one is missing, read throws "lost", and
// the next read starts after the last one received. The request or its answers may
// also be lost with a connection: if nothing comes in time, read throws "lost" too.
//
// If the read ends well, end has the txid at which the next one goes on (next) and
// the partition's high-water mark (mark).
import { createInbox } from "@nats-io/transport-node";

const answerTimeout = 5000; // milliseconds between two answers; longer than a request's wait

export async function* read(nc, partition, request, end = {}) {
  const inbox = createInbox();
  const answers = nc.subscribe(inbox);
  const timeout = setTimeout(() => answers.unsubscribe(), answerTimeout); // ends the loop
  nc.publish(`cantus.read.${partition}`, JSON.stringify(request), { reply: inbox });
  let last = 0;
  const checkPrevious = (before) => {
    if (Number(before) !== last) throw new Error(`lost: ${before} was sent, ${last} came`);
  };
  try {
    for await (const m of answers) {
      timeout.refresh();
      const refused = m.headers?.get("Nats-Service-Error");
      if (refused) throw new Error(refused);
      // The status is NATS's own, or a header if a program relays the answers.
      const status = m.headers?.code || Number(m.headers?.get("Status"));
      if (status === 503) throw new Error(`nobody answers for partition ${partition}`);
      if (status === 204) {
        checkPrevious(m.headers.get("Cantus-Last"));
        end.next = Number(m.headers.get("Cantus-Next"));
        end.mark = Number(m.headers.get("Cantus-High-Water-Mark"));
        return;
      }
      checkPrevious(m.headers.get("Cantus-Previous"));
      last = Number(m.headers.get("Cantus-Txid"));
      yield { txid: last, kind: m.headers.get("Cantus-Kind"), text: m.string() };
    }
  } finally {
    clearTimeout(timeout);
    answers.unsubscribe();
  }
  throw new Error(`lost: no answer came within ${answerTimeout} ms`);
}
