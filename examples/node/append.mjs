// append sends one transaction until its outcome is known. The message id makes
// it safe to resend.
import { randomUUID } from "node:crypto";
import { headers } from "@nats-io/transport-node";

export async function append(nc, partition, payload, fields) {
  const h = headers();
  for (const [key, value] of Object.entries({ ...fields, "Nats-Msg-Id": randomUUID() })) h.set(key, value);
  for (;;) {
    try {
      const reply = (await nc.request(`cantus.append.${partition}`, payload, { headers: h, timeout: 5000 })).json();
      if (!reply.error || (reply.error.code < 500 && reply.error.code !== 429)) return reply;
    } catch {
      // No answer, or no responders.
    }
    await new Promise((resolve) => setTimeout(resolve, 50 + Math.random() * 200));
  }
}
