// A client of Sluicegate in one file without dependencies: five transports, one cursor.
//
//     const client = new Client({ topics: ["orders.#"], transport: "sse", onEvent: (event) => console.log(event) });
//     client.start();
//     client.switchTo("longpoll"); // in the middle: nothing is lost, nothing comes twice
//     client.stop();               // client.cursor is where to go on: later, elsewhere, on any transport
//
// What makes it exact: the cursor moves with every event that is handed on, and every request begins at the cursor.

const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 10_000;
const LONG_POLL_SECONDS = 25;
const PASSING = new Set([408, 425, 429, 500, 502, 503, 504]); // statuses that may be another one next time

// --- the transports -------------------------------------------------------------------------------------------------
// Each serves one connection: it hands what comes in to `client.handle`, and ends when the connection does or when
// `signal` is aborted. `Client` calls it again, with the cursor reached, until it is stopped.

/** WebSocket: one JSON text a message. Its other direction (subscribe, publish, ack) is not needed here. */
async function websocket(client, signal) {
  const address = await client.ticketed(signal);
  return new Promise((resolve) => {
    const socket = new WebSocket(address.replace(/^http/, "ws"));
    client.renew = async () => socket.send(JSON.stringify({ op: "auth", token: await client.token() }));
    const close = () => {
      // A browser logs an error when a socket is closed before it is open.
      if (socket.readyState === WebSocket.CONNECTING) socket.onopen = () => socket.close();
      else socket.close();
      resolve();
    };
    signal.addEventListener("abort", close);
    socket.onmessage = ({ data }) => signal.aborted || client.handle(JSON.parse(data));
    socket.onclose = resolve;
  });
}

/** Server-sent events: the browser's EventSource reconnects by itself and says where it was (Last-Event-ID). */
async function sse(client, signal) {
  const address = await client.ticketed(signal);
  return new Promise((resolve) => {
    const source = new EventSource(address);
    const listen = (name, handle) =>
      source.addEventListener(name, ({ data }) => signal.aborted || handle(JSON.parse(data)));
    signal.addEventListener("abort", () => resolve(source.close()));
    source.onopen = () => client.opened();
    listen("message", (event) => client.handle(event));
    listen("sluice.welcome", (welcome) => client.handle({ control: "welcome", ...welcome }));
    listen("sluice.expiring", (expiring) => client.handle({ control: "expiring", ...expiring }));
    listen("sluice.gap", (gap) => client.handle({ control: "gap", ...gap }));
    listen("sluice.reconnect", (advice) => client.handle({ control: "reconnect", ...advice }));
    listen("sluice.error", (error) => client.handle({ control: "error", ...error }));
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) resolve();
      else client.lost(); // it tries again, after the `retry:` that the gateway gave it
    };
  });
}

/** HTTP streaming: one JSON a line, until either side ends it. */
async function ndjson(client, signal) {
  const response = await client.ask(client.address(), { signal, headers: { Accept: "application/x-ndjson" } });
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    await client.reading(); // who does not read on is waited for: by TCP, then by the gateway, at the cursor
    if (done) return;
    const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (signal.aborted) return;
      client.handle(JSON.parse(line));
    }
  }
}

/** Long poll: each request is answered as soon as there is something behind its cursor; the first one at once. */
async function longpoll(client, signal) {
  for (let wait = 0; ; wait = LONG_POLL_SECONDS) {
    const response = await client.ask(client.address({ wait, limit: 1000 }), { signal });
    await handleAnswer(client, signal, await response.json());
  }
}

/** Poll: the cursor is an ETag, "nothing new" is 304, and Retry-After says when to ask again. */
async function poll(client, signal) {
  for (;;) {
    const headers = { "If-None-Match": `"${client.cursor}"` };
    const response = await client.ask(client.address({ cursor: null, limit: 1000 }), { signal, headers });
    const nothing = response.status === 304;
    const cursor = response.headers.get("ETag").replaceAll('"', "");
    await handleAnswer(client, signal, nothing ? { events: [], cursor } : await response.json());
    await sleep(retryAfter(response), signal);
  }
}

async function handleAnswer(client, signal, { gap, events, cursor }) {
  client.opened();
  await client.reading();
  if (signal.aborted) return;
  if (gap) client.handle({ control: "gap", ...gap });
  for (const event of events) {
    if (signal.aborted) return;
    client.handle(event);
  }
  if (!signal.aborted) client.cursor = cursor; // further than the last event: what did not match has been looked at
}

export const TRANSPORTS = { websocket, sse, ndjson, longpoll, poll };

// --- the client -----------------------------------------------------------------------------------------------------

/**
 * Follows topics from a cursor on, on any transport, across outages.
 *
 * Its states: `connecting`, `open`, `waiting` (to connect again), `stopped`, `refused` (the request is wrong).
 */
export class Client {
  #running = null; // the AbortController of what runs
  #stalled = null; // while it does not read: the promise that ends then, and what ends it
  #advice = 0; // milliseconds that the gateway asked us to wait before we reconnect
  #failures = 0; // in a row
  #hop = null; // by what we were sent on
  #home; // the address that we were given: where we go when another one, that we were sent to, fails

  /**
   * @param {string[]} topics patterns: `*` is one word, `#` any number of words
   * @param {string} cursor where to begin: a cursor seen before, `latest`, `earliest` or an RFC 3339 time
   * @param {string} transport a name in TRANSPORTS
   * @param {string} base address of the gateway
   * @param {string} key by which this client belongs to one of several replicas, if there are any
   * @param {Function} token returns a token that is good now, or a promise of one; none where a cookie says who is there
   */
  constructor({ topics, cursor = "latest", transport = "websocket", base = document.baseURI, key = null, token = null, ...listeners }) {
    const nothing = () => {};
    Object.assign(this, { topics, cursor, transport, base, key, token, connection: null, state: "stopped" });
    this.#home = base;
    Object.assign(this, { onEvent: nothing, onGap: nothing, onState: nothing }, listeners);
  }

  start() {
    if (this.#running) return;
    this.#running = new AbortController();
    this.#run(this.#running.signal);
  }

  stop() {
    this.#running?.abort();
    this.#running = null;
    this.readOn();
    this.#change("stopped");
  }

  /** Go on over another transport, from the cursor reached on this one. */
  switchTo(transport) {
    const running = this.#running;
    this.stop();
    this.transport = transport;
    if (running) this.start();
  }

  /** Stop reading, with the connection left open. A browser offers no way to do that to a WebSocket or EventSource. */
  stall() {
    if (this.#stalled || !this.canStall) return;
    this.#stalled = {};
    this.#stalled.promise = new Promise((resolve) => (this.#stalled.end = resolve));
  }

  readOn() {
    this.#stalled?.end();
    this.#stalled = null;
  }

  get canStall() {
    return ["ndjson", "longpoll", "poll"].includes(this.transport);
  }

  get stalled() {
    return this.#stalled !== null;
  }

  // What the transports call

  /** The address of the request that goes on at the cursor. */
  address(parameters = {}) {
    const hop = this.base === this.#home ? null : this.#hop; // whoever was sent on is not sent back
    return eventsUrl(this.base, { topic: this.topics, cursor: this.cursor, key: this.key, hop, ...parameters });
  }

  /** The same for a WebSocket or an EventSource, which can have no header: with a ticket, if there is a token. */
  async ticketed(signal) {
    this.renew = () => this.#renew();
    if (!this.token) return this.address();
    const response = await this.ask(new URL("v1/tickets", this.base), { method: "POST", signal });
    return this.address({ ticket: (await response.json()).ticket });
  }

  /** Make a request as who we are. */
  async ask(url, options) {
    const token = this.token ? { Authorization: `Bearer ${await this.token()}` } : {};
    return ask(url, { ...options, headers: { ...options.headers, ...token } });
  }

  /** Hand a newer token in for the connection that we have. */
  async #renew() {
    const body = JSON.stringify({ token: await this.token() });
    const headers = { "Content-Type": "application/json" };
    await this.ask(new URL(`v1/connections/${this.connection}/token`, this.base), { method: "POST", headers, body });
  }

  /** Wait until reading is wanted. */
  reading() {
    return this.#stalled?.promise;
  }

  /** The gateway answered. */
  opened() {
    this.#failures = 0;
    this.#advice = 0;
    this.#change("open");
  }

  /** The connection is gone, another is on its way. */
  lost() {
    this.#change("waiting");
  }

  /** Take a message: an event, or a control message. */
  handle(message) {
    switch (message.control) {
      case undefined:
        this.cursor = message.cursor;
        this.onEvent(message);
        break;
      case "welcome": // its cursor is where we asked to begin: we have it already
        this.connection = message.connection;
        this.opened();
        break;
      case "heartbeat": // everything up to there has been looked at, also where nothing matched
        this.cursor = message.cursor;
        break;
      case "gap": // the events behind `from`, up to `to`, cannot be had: it is said, never silent
        this.cursor = message.to;
        this.onGap(message);
        break;
      case "expiring": // our token will soon be over; without a newer one the connection ends, and we come back
        if (this.token) this.renew().catch(() => {});
        break;
      case "reconnect": // the gateway is going away, or wants to be rid of us for now
        this.cursor = message.cursor;
        this.#advice = message.after_ms;
        this.base = this.#home; // whatever was true of where we were sent may have changed
        if (message.url) {
          this.base = `${message.url}/`; // we belong to another replica
          this.#hop = message.hop;
          this.#advice = 0;
          this.#failures = 0;
        }
        break;
    }
  }

  async #run(signal) {
    while (!signal.aborted) {
      this.#change("connecting");
      let wait = 0;
      const base = this.base;
      try {
        this.renew = () => this.#renew();
        if (this.cursor === "latest") this.cursor = await head(this.topics, this.base, signal, this.token);
        await TRANSPORTS[this.transport](this, signal);
      } catch (error) {
        if (signal.aborted) return;
        if (error.final) return this.#refused(error.message);
        wait = error.after ?? 0;
      }
      if (signal.aborted) return;
      if (this.base === base && this.#failures) this.base = this.#home;
      wait = Math.max(wait, this.#advice, backoff(this.#failures++));
      this.#advice = 0;
      this.lost();
      await sleep(wait, signal);
    }
  }

  #refused(why) {
    this.#running = null;
    this.#change("refused", why);
  }

  #change(state, detail = "") {
    if (state !== "open") this.connection = null;
    if (state === this.state) return;
    this.state = state;
    this.onState(state, detail);
  }
}

/** Return the cursor of the log's head: where "from now on" begins, the same for all who are given it. */
export async function head(topics, base = document.baseURI, signal = undefined, token = null) {
  const headers = token ? { Authorization: `Bearer ${await token()}` } : {};
  const response = await ask(eventsUrl(base, { topic: topics }), { signal, headers });
  return (await response.json()).cursor;
}

/**
 * Publish events, again and again until they are durable; return `{accepted, duplicates, cursor}`.
 *
 * Each has an `id`, so the gateway stores it once however often it is sent. `onRetry` is told why it is sent again.
 */
export async function publish(events, { base = document.baseURI, signal, onRetry = () => {} } = {}) {
  const body = JSON.stringify(events.map((event) => ({ ...event, id: event.id ?? newId() })));
  const headers = { "Content-Type": "application/json" };
  for (let failures = 0; ; failures++) {
    try {
      return await (await ask(eventsUrl(base), { method: "POST", headers, body, signal })).json();
    } catch (error) {
      if (error.final || signal?.aborted) throw error;
      onRetry(error.message);
      await sleep(Math.max(error.after ?? 0, backoff(failures)), signal);
    }
  }
}

// --- small parts ----------------------------------------------------------------------------------------------------

/** An answer that is no success; `final` if asking again would not help, `after` milliseconds to wait otherwise. */
class Refusal extends Error {
  constructor(response, problem) {
    super(problem.detail ?? problem.title ?? `the gateway answered ${response.status}`);
    this.final = !PASSING.has(response.status);
    this.after = retryAfter(response);
  }
}

async function ask(url, options) {
  const response = await fetch(url, { cache: "no-store", ...options });
  if (response.ok || response.status === 304) return response;
  throw new Refusal(response, await response.json().catch(() => ({}))); // RFC 9457 says what is wrong
}

export function eventsUrl(base, parameters = {}) {
  const url = new URL("v1/events", base);
  for (const [name, value] of Object.entries(parameters)) {
    for (const each of [value ?? []].flat()) url.searchParams.append(name, each);
  }
  return url.href;
}

export function newId() {
  const words = crypto.getRandomValues(new Uint32Array(3)); // `randomUUID` needs https or localhost
  return Array.from(words, (word) => word.toString(36).padStart(7, "0")).join("");
}

const retryAfter = (response) => 1000 * (Number(response.headers.get("Retry-After")) || 0);

/** Milliseconds before the next attempt: doubled each time, half of it by chance, so that not all come at once. */
function backoff(failures) {
  const longest = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** Math.min(failures, 10));
  return longest * (0.5 + Math.random() / 2);
}

/** Wait; an abort ends it early. */
export function sleep(milliseconds, signal = undefined) {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    signal?.addEventListener("abort", end);
  });
}
