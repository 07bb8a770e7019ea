// token returns a token of a lock name that stands for any text, by the rule of
// subjects.md ("Locks"): writers in all languages make the same one of a text.
import { createHash } from "node:crypto";

export function token(text) {
  const bytes = Buffer.from(text); // UTF-8
  let escaped = "";
  for (const b of bytes) {
    const plain = b > 0x20 && b < 0x7f && !"%*,.>".includes(String.fromCharCode(b));
    escaped += plain ? String.fromCharCode(b) : "%" + b.toString(16).toUpperCase().padStart(2, "0");
  }
  if (escaped === "") return "%";
  if (escaped.length <= 64) return escaped;
  return escaped.slice(0, 22) + "%=" + createHash("sha256").update(bytes).digest("hex").slice(0, 40);
}
