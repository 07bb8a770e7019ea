// The page: one stream from the node, a login where one is needed, and forms.

import { $, set } from "./dom.js";
import { events, login, logout, Refused, session } from "./api.js";
import { showStatus } from "./score.js";
import { after, clearTail, tail, take } from "./log.js";
import { close, route } from "./details.js";

let full; // whether the node shows transactions at all, undefined for not known
let viewer; // the user, undefined for nobody
let stream = new AbortController();

function say(text) {
  set($("stream"), text);
  $("stream").hidden = text === "";
}

// show makes visible what the viewer may use.
function show() {
  const reading = viewer !== undefined;
  $("reading").hidden = !reading;
  $("conflicts").hidden = !reading;
  $("logout").hidden = !reading || viewer === "";
  $("withheld").hidden = reading || !$("login").hidden;
  set($("viewer"), reading && viewer !== "" ? `as user ${viewer}` : "");
}

function withhold(text) {
  viewer = undefined;
  set($("withheld"), text);
  show();
}

// enter tries to read without a login, and asks for one if that is needed.
async function enter() {
  if (session.token) {
    viewer = sessionStorage.getItem("cantus-page-user") ?? "";
    show();
    return;
  }
  try {
    viewer = await login({});
    sessionStorage.setItem("cantus-page-user", viewer);
    $("login").hidden = true;
    show();
    if (location.hash) route();
  } catch (err) {
    if (!(err instanceof Refused)) throw err;
    $("login").hidden = err.status !== 401;
    withhold(err.message);
  }
}

function query() {
  if (viewer === undefined) return {};
  const form = $("filter").elements;
  const q = { tail: "1", after: [...after].map(([p, txid]) => `${p}:${txid}`).join(",") };
  for (const name of ["partitions", "kind", "lock"]) {
    const value = form[name].value.trim();
    if (value && value !== "all") q[name] = name === "partitions" ? value.replace(/[\s,]+/g, ",") : value;
  }
  return q;
}

// follow reads one stream until it ends, and returns why it did.
async function follow() {
  stream = new AbortController();
  try {
    for await (const { event, data } of events(query(), stream.signal)) {
      if (event === "end") return data.because;
      if (event === "begin") {
        full = data.full;
        if (viewer === undefined && full && $("login").hidden) {
          await enter();
          if (viewer !== undefined) return undefined; // with a tail from now on
        }
        if (!full) withhold("This page shows no transactions, since everybody who reaches the port sees it. Start the node with --page full on loopback for them.");
      } else if (event === "status") {
        say("");
        showStatus(data);
      } else {
        take(event, data);
      }
    }
    return "the connection has ended";
  } catch (err) {
    if (stream.signal.aborted) return undefined;
    if (err instanceof Refused && err.status === 401) { // the login has ended
      session.token = "";
      clearTail();
      withhold("The login has ended.");
      return undefined;
    }
    if (err instanceof Refused && err.status === 400) {
      set($("filter-error"), err.message);
      await new Promise((resolve) => { stream.signal.addEventListener("abort", resolve); });
      return undefined;
    }
    return err instanceof Refused ? err.message : `the node does not answer (${err.message})`;
  }
}

const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

async function run() {
  for (let pause = 500; ;) {
    const began = Date.now();
    const why = await follow();
    if (why === undefined) {
      await sleep(100);
      continue;
    }
    if (Date.now() - began > 15_000) pause = 500;
    say(`Not live: ${why}. Trying again.`);
    await sleep(pause);
    pause = Math.min(2 * pause, 10_000);
  }
}

function again() {
  set($("filter-error"), "");
  stream.abort();
}

$("filter").addEventListener("submit", (e) => {
  e.preventDefault();
  clearTail();
  again();
});

$("pause").addEventListener("click", () => {
  const on = !tail.waiting;
  $("pause").setAttribute("aria-pressed", String(on));
  set($("pause"), on ? "paused: go on" : "pause");
  on ? tail.pause() : tail.resume();
});

$("lookup").addEventListener("submit", (e) => {
  e.preventDefault();
  const { partition, what } = $("lookup").elements;
  const p = partition.value.trim(), id = what.value.trim();
  if (!/^\d+$/.test(p) || !id) {
    set($("filter-error"), "Name a partition, such as 0, and a txid or a lock.");
    return;
  }
  set($("filter-error"), "");
  const to = `#/${/^\d+$/.test(id) ? "transaction" : "lock"}/${p}/${encodeURIComponent(id)}`;
  location.hash === to ? route() : location.hash = to;
});

$("login").addEventListener("submit", async (e) => {
  e.preventDefault();
  const { user, password, token, inbox } = $("login").elements;
  set($("login-error"), "");
  try {
    viewer = await login({ user: user.value, password: password.value, token: token.value, inbox: inbox.value });
  } catch (err) {
    set($("login-error"), err.message);
    password.focus();
    return;
  }
  sessionStorage.setItem("cantus-page-user", viewer);
  password.value = token.value = "";
  $("login").hidden = true;
  show();
  again();
  $("transactions").focus();
  if (location.hash) route();
});

$("logout").addEventListener("click", async () => {
  await logout();
  clearTail();
  close();
  viewer = undefined;
  $("login").hidden = false;
  show();
  again();
});

$("close").addEventListener("click", close);
addEventListener("hashchange", route);
addEventListener("keydown", (e) => {
  if (e.key === "Escape") close();
  // The arrows go from one transaction to the next.
  const row = document.activeElement?.closest?.(".rows > li");
  const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[e.key];
  if (!row || !step) return;
  let to = row[step];
  while (to && !to.querySelector("a")) to = to[step];
  if (!to) return;
  e.preventDefault();
  to.querySelector("a").focus();
});

run();
if (location.hash && session.token) route();
