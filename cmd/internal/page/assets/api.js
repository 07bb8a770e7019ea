// Requests to the node. Each has a header that no other site can send. The
// token of a login is in sessionStorage, which belongs to this origin and tab;
// a cookie would go to every port of the machine.

const key = "cantus-page-token";

export const session = {
  get token() { return sessionStorage.getItem(key) ?? ""; },
  set token(t) { t ? sessionStorage.setItem(key, t) : sessionStorage.removeItem(key); },
};

function headers(more) {
  const all = { "Cantus-Page": "1", ...more };
  if (session.token) all.Authorization = "Bearer " + session.token;
  return all;
}

export class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function checked(answer) {
  if (answer.ok) return answer;
  let text = `the node answered ${answer.status}`;
  try { text = (await answer.json()).error ?? text; } catch { /* it is no JSON */ }
  throw new Refused(answer.status, text);
}

export async function ask(path, query, signal) {
  const answer = await fetch(`/page/${path}?${new URLSearchParams(query)}`, { headers: headers(), signal });
  return (await checked(answer)).json();
}

export async function login(credentials) {
  const answer = await checked(await fetch("/page/login", {
    method: "POST", headers: headers({ "Content-Type": "application/json" }), body: JSON.stringify(credentials),
  }));
  const { token, user } = await answer.json();
  session.token = token;
  return user;
}

export async function logout() {
  await fetch("/page/logout", { method: "POST", headers: headers() });
  session.token = "";
}

// events yields the server-sent events of a live stream until it ends. It ends
// with an error if nothing has come for some time.
export async function* events(query, signal) {
  const silent = new AbortController();
  let timer;
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silent.abort(new Error("nothing was heard for 12 seconds")), 12_000);
  };
  heard();
  try {
    const answer = await checked(await fetch(`/page/live?${new URLSearchParams(query)}`,
      { headers: headers(), signal: AbortSignal.any([signal, silent.signal]) }));
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let buffer = ""; ;) {
      const { value, done } = await reader.read();
      if (done) return;
      heard();
      const parts = (buffer + value).split("\n\n");
      buffer = parts.pop();
      for (const part of parts) {
        const event = /^event: (.*)$/m.exec(part)?.[1];
        const data = /^data: (.*)$/m.exec(part)?.[1];
        if (event && data) yield { event, data: JSON.parse(data) };
      }
    }
  } finally {
    clearTimeout(timer);
  }
}
