// @ts-check
/**
 * Send answers to the server, in their order, and keep them until it has acknowledged them; the same request brings the
 * next pairs. Where the browser stores anything, a reload, a dead server or a lost network loses no answer. Sending an answer twice stores it once, since each has its own id.
 */

import { at } from "../common/server.js";
import { forget, keep, namesOf, recallJson } from "../common/storage.js";

const MAX_EVENTS = 100;
const RETRY_MS = [500, 1000, 2000, 4000, 8000];
const HEARTBEAT_MS = 2000;
const TIMER_EARLY_MS = 20;
/** @type {Record<number, string>} */
const STATE_OF_STATUS = { 401: "signed-out", 409: "signed-out", 429: "too-fast" };
const SEND_MS = 30_000; // a request that hangs longer, as on a connection that died in silence, is sent again
const TAKEN_APART = [400, 413, 414, 422]; // a request with such a status may hold a single bad event

/**
 * @typedef {{id: string, type: "judge", showing: string, choice: string, skip_reason: string | null, reasons: string[],
 *   tiers?: number[][], worst?: number[][], seconds: number, view_mode: string, question: string, replaces?: string}} Judge an answer
 * @typedef {{id: string, type: "undo", judgment: string}} Undo the taking back of an answer
 * @typedef {Judge | Undo} Sent an event, as the server takes it
 *
 * @typedef {object} Answer what the server says
 * @property {{id: string | null, status: string, error?: string, pair?: import('./viewer.js').View}[]} results one for each event
 * @property {import('./viewer.js').View[]} pairs and tasks to show next
 * @property {string[]} [gone] showings that another page of this person took over
 * @property {any} [project] where it has changed
 * @property {import('./study.js').Study | null} [study] of a participant of one
 * @property {boolean} done
 * @property {number} with_others
 * @property {number} in_own_pages
 * @property {number} damaged
 * @property {number} own_pages
 *
 * @typedef {object} Asking what the page has and wants
 * @property {number} [want] pairs and tasks
 * @property {string[]} holding
 * @property {string} [question] version of the question that is shown
 * @property {boolean} [leaving]
 *
 * @typedef {object} State
 * @property {string} name
 * @property {number} waiting answers on their way
 * @property {boolean} kept whether this browser keeps them for a later page
 * @property {number} [seconds] for which none is sent
 */

/** A random UUID; crypto.randomUUID is missing on plain http addresses. */
export function makeId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

/**
 * Make the outbox of this tab.
 * @param {string} personId whose answers these are; another person's never mix in.
 * @param {object} page
 * @param {() => Asking} page.need what to ask for
 * @param {(answer: Answer) => void} page.onAnswer what to do with the server's answer
 * @param {(state: State) => void} page.onState called with every change; names: saved, saving, retrying, too-fast,
 *   signed-out
 * @param {(event: Sent, error: string) => void} page.onRefused called with an event that the server does not take
 */
export function makeOutbox(personId, { need, onAnswer, onState, onRefused }) {
  const prefix = `facereward:outbox:${personId}:`;
  const pageId = makeId();
  const ownKey = prefix + pageId;
  /** @type {Set<string>} */
  const adopted = new Set(); // boxes whose events are in `events`, still to be removed
  /** @type {Sent[]} */
  let events = [];
  let kept = true;
  let inFlight = false;
  let failures = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  let again = false;
  let most = MAX_EVENTS;
  let failing = "retrying"; // the state while `failures`
  let notBefore = 0; // Date.now() until which the server asked to wait

  /** Store the events with the time; other tabs read `seen`: an open tab renews it, one that closes sets 0. */
  function store(seen = Date.now()) {
    if (events.length) kept = keep(ownKey, JSON.stringify({ seen, events }));
    else forget(ownKey);
    if (events.length && !kept) return;
    for (const key of adopted) forget(key);
    adopted.clear();
  }

  /** Take over what closed tabs of this person left behind. Should one live after all, both send the same answers. */
  function adopt() {
    const before = events.length;
    for (const key of namesOf(prefix)) {
      const box = recallJson(key);
      const closed = Array.isArray(box?.events) && !(Math.abs(Date.now() - box.seen) < 3 * HEARTBEAT_MS); // a clock may be put back
      if (key === ownKey || adopted.has(key) || !closed) continue;
      events.unshift(...box.events);
      adopted.add(key);
      store();
    }
    if (events.length > before) report("saving");
  }

  /** @type {(sent: Sent[], asking: Asking) => string} */
  const makeBody = (sent, asking) => JSON.stringify({ person: personId, page: pageId, events: sent, ...asking });

  /** @param {string} name */
  function report(name) {
    onState({ name, waiting: events.length, kept, seconds: Math.max(0, Math.ceil((notBefore - Date.now()) / 1000)) });
  }

  /**
   * Queue an event; `flush` sends it.
   * @param {Sent} event
   */
  function push(event) {
    events.push(event);
    store();
    report(failures ? failing : "saving");
  }

  /**
   * Remove the events that the server has answered, stored or refused.
   * @param {Sent[]} sent
   */
  function settle(sent) {
    events = events.filter((event) => !sent.includes(event));
    store();
  }

  /** Send what waits and fetch what is needed; one request at a time, and none while the server asked to wait. */
  async function flush() {
    if (Date.now() < notBefore) return;
    if (inFlight) {
      again = true;
      return;
    }
    const asking = need();
    const sent = events.slice(0, most);
    if (!sent.length && asking.want === 0 && !again) return;
    again = false;
    inFlight = true;
    clearTimeout(timer);
    try {
      const response = await fetch(at("/api/label"), {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: makeBody(sent, asking),
        signal: AbortSignal.timeout?.(SEND_MS),
      });
      if (!response.ok) throw new ServerError(response, await response.text());
      /** @type {Answer} */
      const answer = await response.json();
      if (!isAnswerTo(sent, answer)) throw new Error("something else answered in the server's place");
      settle(sent);
      failures = 0;
      if (sent.length < most) most = MAX_EVENTS; // what had to be sent singly is through
      report(events.length ? "saving" : "saved");
      answer.results.forEach(({ status, error }, place) => status === "refused" && onRefused(sent[place], error));
      onAnswer(answer);
    } catch (error) {
      if (error instanceof ServerError && TAKEN_APART.includes(error.status) && sent.length) {
        if (sent.length === 1) {
          settle(sent);
          onRefused(sent[0], error.message);
        }
        most = 1;
      }
      failures += 1;
      console.warn("not sent yet:", error);
      if (error instanceof ServerError && error.seconds) notBefore = Date.now() + 1000 * error.seconds;
      failing = STATE_OF_STATUS[error instanceof ServerError ? error.status : 0] ?? "retrying";
      report(failing);
    }
    inFlight = false;
    const pause = Math.max(notBefore + TIMER_EARLY_MS - Date.now(), RETRY_MS[Math.min(failures, RETRY_MS.length) - 1]);
    if (failures) timer = setTimeout(flush, pause);
    else if (events.length || again) flush();
  }

  /**
   * Say that the page closes. That aborts its requests, but not a beacon; an answer that comes both ways is stored once.
   * A beacon takes 64 KiB, so of many answers only the first are sent with it.
   */
  function leave() {
    store(0);
    const { holding } = need();
    for (let count = Math.min(events.length, MAX_EVENTS); ; count = Math.floor(count / 2)) {
      const body = makeBody(events.slice(0, count), { holding, leaving: true });
      if (sendLast(at("/api/label"), body) || count === 0) return;
    }
  }

  if (!keep(`${prefix}probe`, "")) kept = false;
  forget(`${prefix}probe`);
  adopt();
  setInterval(() => {
    adopt();
    if (events.length) store();
    if (events.length && !failures) flush();
  }, HEARTBEAT_MS);
  window.addEventListener("online", flush);
  window.addEventListener("pagehide", leave);
  window.addEventListener("beforeunload", (event) => {
    if (events.length && !kept) event.preventDefault(); // the browser asks whether to lose them
  });
  window.addEventListener("pageshow", (event) => {
    store();
    if (event.persisted) renew();
  });

  function renew() {
    again = true;
    flush();
  }

  return { push, flush, leave, renew, state: () => ({ name: events.length ? "saving" : "saved", waiting: events.length, kept }) };
}

/**
 * Whether this answers each of these events; a network's login page or a proxy may send anything.
 * @param {Sent[]} sent
 * @param {Answer} answer
 */
function isAnswerTo(sent, answer) {
  if (!Array.isArray(answer?.results) || !Array.isArray(answer.pairs) || answer.results.length !== sent.length) return false;
  return answer.results.every(({ id, status }, place) => id === sent[place]?.id || (id === null && status === "refused"));
}

/**
 * Send a body that outlives the page; false where it is too large for that. Some browsers have no beacons.
 * @param {string} address
 * @param {string} body
 */
function sendLast(address, body) {
  const blob = new Blob([body], { type: "application/json" });
  if (navigator.sendBeacon) return navigator.sendBeacon(address, blob);
  if (blob.size > 60_000) return false;
  fetch(address, { method: "POST", body: blob, keepalive: true }).catch(() => {}); // then a later page sends them
  return true;
}

class ServerError extends Error {
  /**
   * @param {Response} response
   * @param {string} text
   */
  constructor(response, text) {
    super(`${response.status} ${text.slice(0, 200)}`);
    this.status = response.status;
    this.seconds = Number(response.headers.get("Retry-After")) || 0; // that the server asks to wait
  }
}
