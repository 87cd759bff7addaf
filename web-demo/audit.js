// The referee: is anything missing, twice or out of order, at any of the clients?
//
// Two independent checks. All clients follow the same topics from the same cursor, so each must get the same events in
// the same order: one that jumps over what another got has lost it. And events that this page publishes are numbered
// within their run, so a number left out is noticed also when all clients miss it. What a gap announces is no loss.

const KEPT = 50_000; // events that all clients have, kept to recognise one that comes again

export class Audit {
  #order = []; // the cursors of all events that any client got, in the log's order; the oldest are forgotten
  #forgotten = 0; // how many were
  #place = new Map(); // cursor -> its number among all events
  #tallies = new Map(); // client -> Tally
  #pending = new Map(); // id of an event of ours that nobody got yet -> whether the gateway accepted it

  /** How many different events came. */
  get total() {
    return this.#forgotten + this.#order.length;
  }

  /** How many events the gateway accepted from this page, for these topics, and no client got yet. */
  get awaited() {
    return [...this.#pending.values()].filter(Boolean).length;
  }

  tally(client) {
    if (!this.#tallies.has(client)) this.#tallies.set(client, new Tally(this));
    return this.#tallies.get(client);
  }

  /** This page is about to publish events with these ids. */
  sent(ids) {
    for (const id of ids) this.#pending.set(id, false);
  }

  /** The gateway made them durable: from now on they must come. */
  accepted(ids) {
    for (const id of ids) if (this.#pending.has(id)) this.#pending.set(id, true);
  }

  /** They were refused, or the gateway knew some of them already. */
  dropped(ids) {
    for (const id of ids) this.#pending.delete(id);
  }

  /** A client got a gap: it may jump, once. */
  gap(client) {
    this.tally(client).told();
  }

  /** A client got an event. */
  take(client, event) {
    const tally = this.tally(client);
    tally.count++;
    this.#pending.delete(event.id);
    this.#compare(tally, event.cursor);
    tally.checkNumber(event.data);
    tally.mayJump = false;
  }

  #compare(tally, cursor) {
    const place = this.#place.get(cursor);
    if (place === undefined) this.#insert(tally, cursor);
    else if (place < tally.at) tally.again(cursor);
    else {
      tally.passOver(this.#order.slice(tally.at - this.#forgotten, place - this.#forgotten));
      tally.at = place + 1;
    }
    if (tally.mayJump) tally.landings.add(cursor);
    if (this.#order.length > 2 * KEPT) this.#forget();
  }

  /** An event that nobody had: behind all others, or one that those who are further have jumped over. */
  #insert(tally, cursor) {
    const index = tally.at - this.#forgotten;
    const next = this.#order[index];
    this.#order.splice(index, 0, cursor);
    for (let each = index; each < this.#order.length; each++) this.#place.set(this.#order[each], this.#forgotten + each);
    for (const other of this.#tallies.values()) {
      if (other.at > tally.at) other.overtaken(cursor, next);
    }
    tally.at++;
  }

  #forget() {
    const slowest = Math.min(...Array.from(this.#tallies.values(), (tally) => tally.at));
    const old = this.#order.splice(0, Math.max(0, Math.min(KEPT, slowest - this.#forgotten - 1)));
    for (const cursor of old) this.#place.delete(cursor);
    this.#forgotten += old.length;
  }
}

/** What one of the checks found wrong with one client. */
class Faults {
  twice = 0;
  disordered = 0;
  missing = new Set();

  miss(what) {
    this.missing.add(what);
  }

  /** It came, though something behind it came before. */
  late(what) {
    if (this.missing.delete(what)) this.disordered++;
    else this.twice++;
  }
}

/** What one client got, and what is wrong with it. */
class Tally {
  at = 0; // how many of the known events are behind it
  count = 0; // events it got
  skipped = 0; // not got, as a gap had announced
  gaps = 0;
  mayJump = false; // a gap came, and no event since
  landings = new Set(); // cursors of the first events behind gaps
  #last = new Map(); // run -> number of its last event
  #byCursor = new Faults();
  #byNumber = new Faults();
  #audit;

  constructor(audit) {
    this.#audit = audit;
  }

  get behind() {
    return this.#audit.total - this.at;
  }

  // Both checks may see the same fault, and either may see one that the other cannot.
  get missing() {
    return Math.max(this.#byCursor.missing.size, this.#byNumber.missing.size);
  }

  get twice() {
    return Math.max(this.#byCursor.twice, this.#byNumber.twice);
  }

  get disordered() {
    return Math.max(this.#byCursor.disordered, this.#byNumber.disordered);
  }

  /** In words: `level` is `idle`, `good`, `told` (gaps, announced), `wait` or `bad`. */
  get verdict() {
    const faults = [
      [this.missing, "missing"],
      [this.twice, "twice"],
      [this.disordered, "out of order"],
    ].filter(([number]) => number > 0);
    if (faults.length) return { level: "bad", text: faults.map((fault) => fault.join(" ")).join(", ") };
    if (this.behind) return { level: "wait", text: `${this.behind.toLocaleString("en")} behind` };
    if (this.gaps) return { level: "told", text: "exact, gap told" };
    if (!this.count) return { level: "idle", text: "no events yet" };
    return { level: "good", text: "exact" };
  }

  /** A gap was told: jumping is allowed once, and the next number of each run may be any. */
  told() {
    this.gaps++;
    this.mayJump = true;
    this.#last.clear();
  }

  passOver(cursors) {
    for (const cursor of cursors) this.#miss(cursor, this.mayJump);
  }

  /** Another client got an event that lies before one this client already has. */
  overtaken(cursor, next) {
    this.at++;
    const announced = this.landings.has(next);
    if (announced) this.landings.add(cursor);
    this.#miss(cursor, announced);
  }

  /** An event came that lies before one that came already. */
  again(cursor) {
    this.#byCursor.late(cursor);
  }

  /** Look at the number that this page gave to an event of its own. */
  checkNumber(data) {
    if (!Number.isInteger(data?.n) || typeof data.run !== "string") return;
    const { n, run } = data;
    const last = this.#last.get(run) ?? n - 1;
    if (n <= last) this.#byNumber.late(`${run} ${n}`);
    for (let each = last + 1; each < n; each++) this.#byNumber.miss(`${run} ${each}`);
    this.#last.set(run, Math.max(last, n));
  }

  #miss(cursor, announced) {
    if (announced) this.skipped++;
    else this.#byCursor.miss(cursor);
  }
}

/** Tell whether a pattern picks a topic: `*` is one word, `#` any number of words. */
export function matches(pattern, topic) {
  const pick = ([first, ...rest], words) => {
    if (first === undefined) return words.length === 0;
    if (first === "#") return pick(rest, words) || (words.length > 0 && pick([first, ...rest], words.slice(1)));
    return words.length > 0 && (first === "*" || first === words[0]) && pick(rest, words.slice(1));
  };
  return pick(pattern.split("."), topic.split("."));
}
