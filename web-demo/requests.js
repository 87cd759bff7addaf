// The panel of requests: hands one in, and shows what becomes of it in three ways at once, as three clients would see it.
//
// Only the newest is watched, and only until it is over: a browser has six connections to a host, and the clients above
// hold some of them.

import { eventsUrl, newId, sleep } from "./client.js";
import { duration, element, find, offerCommand, quote } from "./parts.js";

const SHOWN = 6;
const POLL_MS = 500;
const WAIT_SECONDS = 10;
const FINAL = new Set(["done", "failed", "cancelled"]);
const WAYS = ["poll", "long poll", "SSE"];
const WORKER = "sluice worker gateway.handling.demo:handle --service demo";

const form = find("#request");
const body = find("#requests tbody");
const rows = []; // the newest first

/** Ask the gateway; return its answer and, if it has some, its JSON. */
async function ask(method, path, { json, headers = {}, signal } = {}) {
  const given = json === undefined ? headers : { "Content-Type": "application/json", ...headers };
  const response = await fetch(new URL(path, document.baseURI), { method, body: json, headers: given, cache: "no-store", signal });
  const text = await response.text();
  let told = null;
  try {
    told = text ? JSON.parse(text) : null;
  } catch {
    // it was not the gateway that answered
  }
  if (!response.ok && response.status !== 304) throw new Error(told?.detail ?? `answered ${response.status}`);
  return { response, told };
}

/** One request, as each of the three ways shows it. */
class Row {
  #stop = new AbortController();
  #began = performance.now();

  constructor(token, data) {
    this.token = token;
    this.data = data;
    this.shown = Object.fromEntries(WAYS.map((way) => [way, { state: "…", after: null }]));
    this.last = null; // what was told last: state, progress, result, error
    this.watched = true;
  }

  get over() {
    return WAYS.every((way) => FINAL.has(this.shown[way].state));
  }

  watch() {
    const { signal } = this.#stop;
    for (const way of [this.#poll, this.#longPoll, this.#listen]) way.call(this, signal).catch(() => {});
  }

  /** Look no more: another one is watched now. */
  leave() {
    this.watched = false;
    this.#stop.abort();
  }

  async cancel() {
    await ask("DELETE", `v1/requests/${this.token}`);
  }

  #take(way, told) {
    const at = this.shown[way];
    if (FINAL.has(at.state) || !told.state) return;
    Object.assign(at, { state: told.state, after: performance.now() - this.#began });
    this.last = { ...this.last, ...told };
    show();
  }

  /** Ask again and again; an answer that says nothing new has no body (If-None-Match). */
  async #poll(signal) {
    await this.#ask("poll", signal, "", () => sleep(POLL_MS, signal));
  }

  /** Ask once, and be answered when there is something new. */
  async #longPoll(signal) {
    await this.#ask("long poll", signal, `?wait=${WAIT_SECONDS}`, async () => {});
  }

  async #ask(way, signal, query, pause) {
    let etag = null;
    while (!signal.aborted && !FINAL.has(this.shown[way].state)) {
      try {
        const headers = etag ? { "If-None-Match": etag } : { "If-None-Match": '"none"' };
        const { response, told } = await ask("GET", `v1/requests/${this.token}${query}`, { headers, signal });
        etag = response.headers.get("ETag") ?? etag;
        if (told) this.#take(way, told);
      } catch (error) {
        if (!signal.aborted) await sleep(1000, signal);
      }
      await pause();
    }
  }

  /** Listen to its topic, as to any other. */
  async #listen(signal) {
    const topic = `requests.${this.token}`;
    const source = new EventSource(eventsUrl(document.baseURI, { topic: [topic], cursor: "earliest" }));
    const close = () => source.close();
    signal.addEventListener("abort", close);
    source.onmessage = ({ data }) => {
      this.#take("SSE", JSON.parse(data).data);
      if (FINAL.has(this.shown.SSE.state)) close();
    };
  }
}

async function handIn() {
  const text = form.data.value;
  let json = text;
  try {
    JSON.parse(text);
  } catch {
    json = JSON.stringify(text);
  }
  const headers = { "Idempotency-Key": newId() };
  const { told } = await ask("POST", `v1/requests/${encodeURIComponent(form.service.value)}`, { json, headers });
  for (const row of rows) row.leave();
  const row = new Row(told.token, text);
  rows.unshift(row);
  rows.length = Math.min(rows.length, SHOWN);
  row.watch();
  show();
}

form.onsubmit = async (event) => {
  event.preventDefault();
  form.result.textContent = "";
  try {
    await handIn();
  } catch (error) {
    form.result.textContent = error.message;
  }
};

const handInCommand = () => {
  const url = new URL(`v1/requests/${form.service.value || "demo"}`, document.baseURI);
  return `curl -s ${quote(String(url))} -d ${quote(form.data.value)}`;
};
offerCommand(find("#request .curl"), handInCommand);
offerCommand(find("#request-worker .curl"), () => WORKER);

// --- showing --------------------------------------------------------------------------------------------------------

function outcome(row) {
  const last = row.last ?? {};
  if (last.state === "done") return JSON.stringify(last.result ?? null);
  if (last.state === "failed") return `${last.error?.reason}: ${last.error?.detail ?? ""}`;
  if (last.progress !== undefined) return JSON.stringify(last.progress);
  return "";
}

function show() {
  body.replaceChildren(
    ...rows.map((row) => {
      const made = element("tr");
      made.dataset.token = row.token;
      const ways = WAYS.map((way) => {
        const { state, after } = row.shown[way];
        const cell = element("td", "", element("span", `pill ${state}`, state));
        if (after !== null) cell.append(element("span", "aside", ` ${duration(Math.round(after))}`));
        if (!row.watched && !FINAL.has(state)) cell.replaceChildren(element("span", "aside", "not watched"));
        return cell;
      });
      const cancel = element("button", "small", "Cancel");
      cancel.type = "button";
      cancel.disabled = FINAL.has(row.last?.state);
      cancel.onclick = () => row.cancel().catch((error) => (form.result.textContent = error.message));
      made.append(element("td", "token", row.token), ...ways, element("td", "outcome", outcome(row)), element("td", "", cancel));
      return made;
    }),
  );
}

/** Show which services there are, and whether somebody works for them. */
async function look() {
  let services = [];
  try {
    services = (await ask("GET", "v1/services")).told.services;
  } catch {
    // it takes no requests, or is away
  }
  const names = services.map((each) => each.service);
  if (names.join() !== [...form.service.options].map((each) => each.value).join()) {
    form.service.replaceChildren(...names.map((name) => element("option", "", name)));
  }
  find("#request-off").hidden = names.length > 0;
  form.hidden = names.length === 0;
  const busy = services.some((each) => each.unfinished > 0 && each.running === 0 && each.waiting_workers === 0);
  find("#request-worker").hidden = !(busy && rows.some((row) => row.last?.state === "queued" && !row.over));
}

async function keepLooking() {
  for (;;) {
    await look();
    await sleep(2000);
  }
}

keepLooking();
