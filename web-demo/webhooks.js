// The webhook panel: makes a webhook to the receiver that the gateway brings along, and shows both sides of it.
//
// The receiver verifies what it gets by the secret it was told, and this page does so again, by the browser's own
// cryptography. Neither can do more than any other receiver: the gateway sends to it only if it may.

import { newId, sleep } from "./client.js";
import { duration, element, find, offerCommand } from "./parts.js";

const LOOK_MS = 500;
const SCHEDULE = [2, 4, 8, 16, 32]; // seconds; the default begins with five, and goes on for three days
const SHOWN = 8;
const OWN = "--webhooks-allow 127.0.0.0/8,::1";

const form = find("#webhook");
const facts = find("#webhook-facts");
const views = find("#webhook-views");
let hook = null; // { id, secret, receiver, tests } of the webhook of this page, if there is one

/** Ask the gateway; return the JSON of its answer. */
async function ask(method, path, members, options) {
  const body = members === undefined ? undefined : JSON.stringify(members);
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  const response = await fetch(new URL(path, document.baseURI), { method, body, headers, cache: "no-store", ...options });
  const text = await response.text();
  if (response.ok) return text ? JSON.parse(text) : null;
  let problem = {};
  try {
    problem = JSON.parse(text);
  } catch {
    // it was not the gateway that answered
  }
  throw Object.assign(new Error(problem.detail ?? `answered ${response.status}`), { pointer: problem.pointer });
}

const receiverPath = (receiver) => `demo/receiver/${receiver}`;
const answer = () => (form.failing.checked ? 500 : 204);

// --- doing something ------------------------------------------------------------------------------------------------

async function make() {
  const receiver = newId();
  const made = await ask("POST", "v1/webhooks", {
    url: String(new URL(receiverPath(receiver), document.baseURI)),
    topics: form.topics.value.split(/[\s,]+/).filter(Boolean),
    schedule: SCHEDULE,
    description: "made by the demo page, removed with it",
  });
  hook = { id: made.id, secret: made.secret, receiver, tests: [] };
  await tellReceiver();
}

async function remove() {
  const { id, receiver } = hook;
  hook = null;
  await looking; // or it would ask for what is gone
  await ask("DELETE", `v1/webhooks/${id}`);
  await ask("DELETE", receiverPath(receiver));
}

const tellReceiver = () => ask("PUT", receiverPath(hook.receiver), { secret: hook.secret, answer: answer() });

/** Send a test event. It is in no log, so the gateway lists it behind all that are; here it comes where it belongs. */
async function test() {
  const { tests, id } = hook;
  tests.unshift((await ask("POST", `v1/webhooks/${id}/test`)).id);
  tests.length = Math.min(tests.length, SHOWN);
}

const retry = (delivery) => ask("POST", `v1/deliveries/${delivery}:retry`);

/** Make a handler of a function: it tells what went wrong, and shows at once what came of it. */
function handler(work) {
  return async (event) => {
    event.preventDefault();
    tell("");
    try {
      await work();
    } catch (error) {
      tell(error.message, error.pointer === "/url");
    }
    await look();
  };
}

/** Say what went wrong, and, if an address is the reason, what would help. */
function tell(text, address = false) {
  form.result.textContent = text;
  find("#webhook-allow").hidden = !address;
}

form.onsubmit = handler(() => (hook ? remove() : make()));
form.test.onclick = handler(test);
form.failing.onchange = handler(async () => hook && (await tellReceiver()));
offerCommand(find("#webhook-allow .curl"), () => `sluice serve ${OWN}`);

// Whoever leaves takes the webhook along: nobody could remove it but by hand.
addEventListener("pagehide", () => {
  if (hook) for (const path of [`v1/webhooks/${hook.id}`, receiverPath(hook.receiver)]) ask("DELETE", path, undefined, { keepalive: true }).catch(() => {});
});

// --- looking --------------------------------------------------------------------------------------------------------

let looking = Promise.resolve();

/** Show everything as it is now; one look after the other. */
function look() {
  looking = looking.then(lookNow, lookNow).catch(() => {});
  return looking;
}

async function lookNow() {
  const mine = hook;
  facts.hidden = views.hidden = !mine;
  form.make.textContent = mine ? "Remove the webhook" : "Make a webhook";
  form.make.classList.toggle("primary", !mine);
  form.test.disabled = !mine;
  form.topics.disabled = Boolean(mine);
  if (!mine) return;
  const webhook = await ask("GET", `v1/webhooks/${mine.id}`);
  const deliveries = await deliveriesOf(mine);
  const attempts = await Promise.all(deliveries.map(attemptsOf));
  const { received } = await ask("GET", receiverPath(mine.receiver)).catch((error) => ({ received: [], problem: error }));
  const verdicts = await Promise.all(received.slice(0, SHOWN).map((each) => verified(mine.secret, each)));
  if (hook !== mine) return;
  showFacts(webhook, mine);
  find("#webhook-deliveries tbody").replaceChildren(...deliveries.map((each, index) => deliveryRow(each, attempts[index])));
  find("#webhook-received tbody").replaceChildren(...verdicts.map((verdict, index) => receivedRow(received[index], verdict)));
  if (attempts.some(([last]) => last?.error?.startsWith("blocked"))) find("#webhook-allow").hidden = false;
}

/** Return the newest deliveries, those of tests among them. */
async function deliveriesOf({ id, tests }) {
  const { deliveries } = await ask("GET", `v1/webhooks/${id}/deliveries?limit=${SHOWN}`);
  const others = deliveries.filter((each) => !tests.includes(each.id));
  const all = [...others, ...(await Promise.all(tests.map((each) => ask("GET", `v1/deliveries/${each}`))))];
  return all.sort((one, other) => other.time.localeCompare(one.time)).slice(0, SHOWN);
}

const known = new Map(); // delivery -> [number of attempts, attempts]

/** Return the attempts of a delivery, the last one first; asked for only when there are more of them. */
async function attemptsOf({ id, attempts }) {
  if (known.get(id)?.[0] !== attempts) {
    known.set(id, [attempts, (await ask("GET", `v1/deliveries/${id}/attempts?limit=20`)).attempts]);
  }
  return known.get(id)[1];
}

const verdicts = new Map(); // signature -> whether it is good

/** Verify a webhook by Standard Webhooks; null if that cannot be done here: browsers do it on https and localhost only. */
async function verified(secret, { id, timestamp, signature, body, whole }) {
  if (!crypto.subtle || !whole) return null;
  const place = `${secret} ${id} ${timestamp} ${signature}`;
  if (!verdicts.has(place)) {
    const hash = { name: "HMAC", hash: "SHA-256" };
    const key = await crypto.subtle.importKey("raw", bytes(secret.slice("whsec_".length)), hash, false, ["verify"]);
    const signed = new TextEncoder().encode(`${id}.${timestamp}.${body}`);
    const tokens = signature.split(" ").map((token) => token.split(","));
    const good = tokens.filter(([scheme]) => scheme === "v1").map(([, text]) => crypto.subtle.verify(hash, key, bytes(text), signed));
    verdicts.set(place, (await Promise.all(good)).includes(true));
  }
  return verdicts.get(place);
}

const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

// --- showing --------------------------------------------------------------------------------------------------------

function showFacts({ id, url, state, pending, health }, { secret }) {
  const waits = health.waits_until ? `, left alone for ${until(health.waits_until)}` : "";
  const shown = { webhook: id, url, secret, state: `${state}, ${pending} pending${waits}` };
  facts.replaceChildren(
    ...Object.entries(shown).map(([name, text]) => {
      const value = element("dd", "", text);
      value.title = text;
      return element("div", "", element("dt", "", name), value);
    }),
  );
  views.dataset.state = state;
}

function deliveryRow({ id, topic, state, webhook_id: name, next_attempt: next }, attempts) {
  const results = [...attempts].reverse().map(({ status, error, duration_ms: took, time }) => {
    const each = element("span", `pill ${status >= 200 && status < 300 ? "live" : "failed"}`, status ?? error.split(":")[0]);
    each.title = `${time}, ${duration(took)}${error ? `, ${error}` : ""}`;
    return each;
  });
  const again = element("button", "small", "Retry");
  again.type = "button";
  again.onclick = handler(() => retry(id));
  again.hidden = state === "held" || state === "expired";
  const cells = [topic, element("span", `pill ${state}`, state), element("span", "pills", ...results), next ? until(next) : "–", again];
  const row = element("tr", "", ...cells.map((cell) => element("td", "", cell)));
  row.title = name;
  Object.assign(row.dataset, { state, attempts: attempts.length });
  return row;
}

function receivedRow({ time, id, timestamp, signature, verified: genuine, why, answered }, inBrowser) {
  const here = inBrowser === null ? "cannot here" : inBrowser ? "verified" : "no signature matches";
  const cells = [
    time.slice(11, 23),
    id,
    timestamp,
    element("span", "signature", signature),
    element("span", `pill ${genuine ? "live" : "failed"}`, genuine ? "verified" : why),
    element("span", `pill ${inBrowser ? "live" : inBrowser === null ? "" : "failed"}`, here),
    answered,
  ];
  const row = element("tr", "", ...cells.map((cell) => element("td", "", cell)));
  row.querySelector(".signature").title = signature;
  Object.assign(row.dataset, { answered, verified: genuine, browser: inBrowser });
  return row;
}

/** Return how long it is until a time. */
function until(time) {
  const left = Math.max(0, Date.parse(time) - Date.now());
  return left < 1000 ? "now" : `${Math.round(left / 1000)} s`;
}

async function watch() {
  for (;;) {
    if (!document.hidden) await look();
    await sleep(LOOK_MS);
  }
}

watch();
