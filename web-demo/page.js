// The demo page: five clients of one gateway side by side, a producer, and the gateway's own view of them.

import { Audit, matches } from "./audit.js";
import { Client, TRANSPORTS, eventsUrl, head, newId, publish, sleep } from "./client.js";
import { duration, element, find, number, offerCommand, quote } from "./parts.js";
import "./requests.js";
import "./ring.js";
import "./webhooks.js";

const SHOWN_EVENTS = 20;
const SHOWN_CONNECTIONS = 12;
const RENDER_MS = 80; // often enough to look live, and cheap also when thousands of events come in
const SERVER_MS = 1000;
const HIDDEN_MS = 3000; // a tab hidden for so long gives its connections back
const STREAM_MS = 100; // between two events of the steady stream
const BATCH_EVENTS = 1000;
const BATCH_BYTES = 4_000_000;

// --- the clients ----------------------------------------------------------------------------------------------------

let audit = new Audit();
let topics = [];

/** One client on the page: its controls, what it got, and whether that is exact. */
class Panel {
  #lines = []; // the newest first
  #delay = null;
  #gap = "";
  #resting = false; // disconnected because the page is hidden

  constructor(name, transport) {
    this.name = name;
    this.client = new Client({ topics, transport });
    this.root = find("#client").content.cloneNode(true).firstElementChild;
    this.part = Object.fromEntries(
      ["transport", "state", "mark", "count", "behind", "delay", "cursor", "seen", "gap", "network", "stall", "hint", "events"]
        .map((each) => [each, find(`.${each}`, this.root)]),
    );
    this.#label();
    this.part.transport.onchange = () => this.#switch();
    this.part.network.onclick = () => (this.client.state === "stopped" ? this.client.start() : this.client.stop());
    this.part.stall.onclick = () => this.#toggleReading();
    offerCommand(find(".curl", this.root), () => this.#command());
    this.show();
  }

  /** Begin anew. All panels are given the same cursor, so all must get the same events. */
  follow(topics, cursor) {
    this.client.stop();
    this.#lines = [];
    this.#gap = "";
    this.#delay = null;
    this.client = new Client({
      topics,
      cursor,
      transport: this.part.transport.value,
      onEvent: (event) => this.#take(event),
      onGap: (gap) => this.#told(gap),
      onState: (state, detail) => this.#changed(state, detail),
    });
    this.client.start();
  }

  /** Give the connection back while nobody looks, and go on at the cursor afterwards. */
  rest() {
    this.#resting = this.client.state !== "stopped" && !this.client.stalled;
    if (this.#resting) this.client.stop();
  }

  wake() {
    if (this.#resting) this.client.start();
    this.#resting = false;
  }

  /** Show what the gateway says about this client's connection: one entry of /v1/connections, if it is there. */
  showSeen(entry) {
    const { transport, connection, state } = this.client;
    let text = "not connected";
    if (entry) text = `${entry.state.replace("_", " ")}, ${number(entry.behind)} behind`;
    else if (connection && this.client.stalled) text = "gave up on it, keeps the log";
    else if (connection) text = "…";
    else if (transport === "sse" && state === "open") text = "unnamed, see below";
    else if (transport === "longpoll" && state === "open") text = "a request that waits";
    else if (transport === "poll" && state === "open") text = "nothing between polls";
    this.part.seen.textContent = text;
    this.part.seen.title = text;
    this.root.dataset.seen = entry?.state ?? "";
  }

  show() {
    const { client, part, root } = this;
    const tally = audit.tally(this.name);
    const verdict = tally.verdict;
    Object.assign(root.dataset, { transport: client.transport, state: client.state, level: verdict.level });
    root.toggleAttribute("data-stalled", client.stalled);
    root.dataset.count = tally.count;
    part.mark.textContent = verdict.text;
    part.state.textContent = this.#words();
    part.count.textContent = number(tally.count);
    part.behind.textContent = number(tally.behind);
    part.delay.textContent = this.#delay === null ? "–" : duration(this.#delay);
    part.cursor.textContent = part.cursor.title = client.cursor;
    part.gap.hidden = !this.#gap;
    part.gap.textContent = this.#gap + (tally.skipped ? `; others got ${number(tally.skipped)} events in it` : "");
    part.network.textContent = client.state === "stopped" ? "Reconnect" : "Disconnect";
    part.stall.textContent = client.stalled ? "Resume reading" : "Stop reading";
    part.stall.disabled = !client.canStall || client.state === "stopped";
    part.stall.title = client.canStall ? "" : "A browser cannot stop reading this; NDJSON and the polls can be stopped";
    part.hint.hidden = !(client.stalled && client.transport === "ndjson");
    Object.assign(find("progress", root), { max: audit.total || 1, value: tally.at });
    part.events.replaceChildren(...this.#lines.map((make) => make()));
    return verdict.level;
  }

  #label() {
    const { name, part, root } = this;
    root.dataset.client = name;
    find("h3", root).textContent = `Client ${name}`;
    find("label .hidden", root).textContent = `Transport of client ${name}`;
    find("progress", root).setAttribute("aria-label", `Events that client ${name} has, of all`);
    part.events.setAttribute("aria-label", `Last events of client ${name}`);
    part.network.setAttribute("aria-describedby", (find("h3", root).id = `client-${name}`));
    part.stall.setAttribute("aria-describedby", `client-${name}`);
    part.transport.value = this.client.transport;
  }

  #words() {
    const { state, stalled } = this.client;
    if (stalled) return "not reading";
    return { open: "connected", waiting: "reconnecting", stopped: "disconnected" }[state] ?? state;
  }

  #take(event) {
    audit.take(this.name, event);
    this.#delay = Math.max(0, Date.now() - Date.parse(event.time));
    this.#add(() => eventLine(event));
    this.root.dispatchEvent(new CustomEvent("sluice:event", { bubbles: true, detail: event }));
  }

  #told(gap) {
    audit.gap(this.name);
    const tally = audit.tally(this.name);
    this.#gap = `${tally.gaps === 1 ? "A gap" : `${tally.gaps} gaps, the last`}: ${gap.reason}, ${gap.from} to ${gap.to}`;
    this.#note(`gap: ${gap.reason}`, "gap-told");
  }

  #changed(state, detail) {
    if (state === "waiting") this.#note("connection lost, going on at the cursor");
    if (state === "refused") this.#note(`refused: ${detail}`);
    show();
  }

  #switch() {
    const transport = this.part.transport.value;
    this.#note(`switched to ${this.part.transport.selectedOptions[0].text}, cursor carried over`);
    this.client.switchTo(transport);
  }

  #toggleReading() {
    if (this.client.stalled) this.client.readOn();
    else this.client.stall();
    this.#note(this.client.stalled ? "reading stopped" : "reading resumed");
  }

  #note(text, kind = "") {
    this.#add(() => element("li", "", element("span", `note ${kind}`, text)));
  }

  #add(line) {
    this.#lines.unshift(line);
    this.#lines.length = Math.min(this.#lines.length, SHOWN_EVENTS);
    show();
  }

  #command() {
    const { transport, topics, cursor } = this.client;
    const url = (parameters) => quote(eventsUrl(document.baseURI, { topic: topics, cursor, ...parameters }));
    return {
      websocket: () => `python -m websockets ${url().replace("http", "ws")}`,
      sse: () => `curl -N -H 'Accept: text/event-stream' ${url()}`,
      ndjson: () => `curl -N -H 'Accept: application/x-ndjson' ${url()}`,
      longpoll: () => `curl ${url({ wait: 25 })}`,
      poll: () => `curl -i -H ${quote(`If-None-Match: "${cursor}"`)} ${url({ cursor: null })}`,
    }[transport]();
  }
}

function eventLine({ topic, data, data_base64: binary, time, cursor }) {
  const text = binary === undefined ? JSON.stringify(data) : `${binary.length * 0.75} bytes that are no JSON`;
  const line = element("li", "", element("span", "", topic));
  line.append(element("time", "", time.slice(11, 23)), element("span", "body", text.slice(0, 120)));
  line.title = cursor;
  return line;
}

const panels = Object.keys(TRANSPORTS).map((transport, index) => new Panel("ABCDE"[index], transport));
find("#clients").append(...panels.map((panel) => panel.root));

// --- the verdict over all -------------------------------------------------------------------------------------------

const SEVERITY = ["idle", "good", "told", "wait", "bad"];
let due = null;

/** Show everything soon. */
function show() {
  due ??= setTimeout(showNow, RENDER_MS);
}

function showNow() {
  due = null;
  const levels = panels.map((panel) => panel.show());
  const worst = SEVERITY[Math.max(...levels.map((level) => SEVERITY.indexOf(level)))];
  const level = worst === "good" && audit.awaited ? "wait" : worst;
  const texts = {
    idle: "no events yet",
    good: `all ${panels.length} clients exact`,
    told: "exact, with gaps told",
    wait: "catching up",
    bad: "something is wrong",
  };
  const overall = find("#overall");
  overall.dataset.level = level;
  const status = find(".text", overall);
  if (status.textContent !== texts[level]) status.textContent = texts[level]; // read aloud only when it changes
  find("#total").textContent = number(audit.total);
}

// --- what is followed -----------------------------------------------------------------------------------------------

const followForm = find("#follow");
let following = new AbortController();

/** Have all clients follow these patterns, from now on. */
async function follow() {
  following.abort();
  following = new AbortController();
  const { signal } = following;
  const wanted = followForm.topics.value.split(/[\s,]+/).filter(Boolean);
  const cursor = await beginning(wanted, signal);
  if (cursor === null) return;
  topics = wanted;
  audit = new Audit();
  history.replaceState(null, "", `?${new URLSearchParams(wanted.map((topic) => ["topic", topic]))}`);
  for (const panel of panels) panel.follow(topics, cursor);
  show();
}

/** Return the cursor from which all clients begin, or null if that is wanted no more or refused. */
async function beginning(wanted, signal) {
  while (!signal.aborted) {
    try {
      const cursor = await head(wanted, document.baseURI, signal);
      followForm.problem.textContent = "";
      return signal.aborted ? null : cursor;
    } catch (error) {
      if (signal.aborted) return null;
      followForm.problem.textContent = error.final ? error.message : "the gateway does not answer, trying again";
      if (error.final) return null;
      await sleep(Math.max(error.after ?? 0, SERVER_MS), signal);
    }
  }
  return null;
}

followForm.onsubmit = (submit) => {
  submit.preventDefault();
  follow();
};

// --- the producer ---------------------------------------------------------------------------------------------------

const form = find("#publish");
let streaming = null; // the AbortController of the steady stream

/** Return the event that the form describes. */
function described() {
  const event = { topic: form.topic.value, data: form.data.value };
  try {
    event.data = JSON.parse(form.data.value);
  } catch {
    // not JSON: it is text
  }
  if (form.key.value) event.key = form.key.value;
  if (form.elements.id.value) event.id = form.elements.id.value;
  return event;
}

/** Yield `count` events of one run, numbered so that the audit notices one that is missing. */
function* run(count, size = 0) {
  const name = newId().slice(0, 6);
  const { data, ...event } = described();
  const members = data !== null && typeof data === "object" && !Array.isArray(data) ? data : { data };
  const pad = size ? { pad: "x".repeat(size) } : {};
  for (let n = 1; n <= count; n++) {
    const id = event.id ? `${event.id}-${n}` : newId();
    yield { ...event, id, data: { n, ...members, run: name, ...pad } };
  }
}

/** Publish events in one request; return the gateway's answer. */
async function send(events, signal) {
  const ids = events.filter(({ topic }) => topics.some((pattern) => matches(pattern, topic))).map(({ id }) => id);
  const mine = audit;
  const onRetry = (why) => tell(`${why}, sending it again`, true);
  mine.sent(ids);
  try {
    const answer = await publish(events, { signal, onRetry });
    if (answer.duplicates) mine.dropped(ids);
    else mine.accepted(ids);
    return answer;
  } catch (error) {
    mine.dropped(ids);
    throw error;
  } finally {
    show();
  }
}

async function publishOne() {
  const event = described();
  report(await send([{ ...event, id: event.id ?? newId() }]));
}

async function publishBurst() {
  const count = form.count.valueAsNumber;
  const size = Number(form.size.value);
  const batch = Math.max(1, Math.min(BATCH_EVENTS, Math.floor(BATCH_BYTES / (size + 200))));
  const sum = { accepted: 0, duplicates: 0 };
  let events = [];
  for (const event of run(count, size)) {
    events.push(event);
    if (events.length < batch && event.data.n < count) continue;
    const answer = await send(events);
    events = [];
    sum.accepted += answer.accepted;
    sum.duplicates += answer.duplicates;
    report({ ...answer, ...sum });
  }
}

async function toggleStream() {
  if (streaming) return streaming.abort();
  streaming = new AbortController();
  const { signal } = streaming;
  showStream();
  try {
    for (const event of run(Infinity)) {
      report(await send([event], signal));
      await sleep(STREAM_MS, signal);
      if (signal.aborted) break;
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  } finally {
    streaming = null;
    showStream();
  }
}

function showStream() {
  form.stream.textContent = streaming ? "Stop steady stream" : "Start steady stream";
  form.stream.setAttribute("aria-pressed", String(streaming !== null));
}

function report({ accepted, duplicates, cursor }) {
  const known = duplicates ? `, ${number(duplicates)} known already` : "";
  tell(`durable: ${number(accepted)} accepted${known}, cursor ${cursor}`);
}

function tell(text, wrong = false) {
  form.result.textContent = text;
  form.result.classList.toggle("wrong", wrong);
}

/** Make a handler of a publishing function: it checks the form, and tells what went wrong. */
function handler(work) {
  return async (event) => {
    event.preventDefault();
    if (!form.reportValidity()) return;
    try {
      await work();
    } catch (error) {
      tell(`refused: ${error.message}`, true);
    }
  };
}

form.onsubmit = handler(publishOne);
form.burst.onclick = handler(publishBurst);
form.stream.onclick = handler(toggleStream);

// --- commands to copy -----------------------------------------------------------------------------------------------

const publishCommand = find(".curl", form);
offerCommand(publishCommand, () => {
  const body = quote(JSON.stringify(described()));
  return `curl -H 'Content-Type: application/json' -d ${body} ${eventsUrl(document.baseURI)}`;
});
form.addEventListener("input", () => publishCommand.ontoggle());

// --- the gateway's view ---------------------------------------------------------------------------------------------

async function watchServer() {
  for (;;) {
    if (!document.hidden && (await showServer()) === 403) break;
    await sleep(SERVER_MS);
  }
  find("#server-note").textContent = "for operators: the token does not grant it";
}

/** Show the connections; return the status of the answer. */
async function showServer() {
  const url = new URL(`v1/connections?limit=${SHOWN_CONNECTIONS}`, document.baseURI);
  try {
    const response = await fetch(url, { cache: "no-store" });
    if (!response.ok) return response.status;
    const { total, connections } = await response.json();
    const seen = new Map(connections.map((entry) => [entry.connection, entry]));
    for (const panel of panels) panel.showSeen(seen.get(panel.client.connection));
    find("#server tbody").replaceChildren(...connections.map(connectionRow));
    find("#server-note").textContent =
      total > connections.length ? `${connections.length} of ${number(total)}, the furthest behind first` : "each second";
  } catch {
    find("#server-note").textContent = "no answer";
  }
}

function connectionRow({ connection, wire, state, behind, delivered, pauses, gaps, cursor }) {
  const owner = panels.find((panel) => panel.client.connection === connection)?.name ?? "";
  const cells = [connection, owner, wire.replace("_", " "), element("span", `pill ${state}`, state.replace("_", " "))];
  const row = element("tr", "", ...cells.map((cell) => element("td", "", cell)));
  row.append(...[behind, delivered, pauses, gaps].map((cell) => element("td", "n", number(cell))), element("td", "", cursor));
  row.dataset.state = state;
  return row;
}

// --- begin ----------------------------------------------------------------------------------------------------------

// A browser opens six HTTP/1.1 connections to one host, for all its tabs: a hidden page would starve the one in sight.
let resting = null;

function restWhileHidden() {
  clearTimeout(resting);
  if (document.hidden) resting = setTimeout(() => panels.forEach((panel) => panel.rest()), HIDDEN_MS);
  else panels.forEach((panel) => panel.wake());
}

document.addEventListener("visibilitychange", restWhileHidden);
restWhileHidden();

const asked = new URLSearchParams(location.search).getAll("topic");
if (asked.length) followForm.topics.value = asked.join(" ");
follow();
watchServer();
