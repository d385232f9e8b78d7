/**
 * The way to the server: answers wait in localStorage until the server has acknowledged them, in their order, and the
 * same request brings the next pairs. A reload, a dead server or a lost network loses nothing; sending an answer twice
 * stores it once, since each has its own id.
 */

import { at } from "./elements.js";

const MAX_EVENTS = 100;
const RETRY_MS = [500, 1000, 2000, 4000, 8000];
const HEARTBEAT_MS = 2000;

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
 * @param {{need: () => {want: number, holding: string[], question: string}, onAnswer: (answer: object) => void,
 *   onState: (state: string, waiting: number) => void}} page what to ask for, and what to do with the answer.
 *   States: saved, saving, retrying, signed-out.
 */
export function makeOutbox(personId, { need, onAnswer, onState }) {
  const prefix = `facereward:outbox:${personId}:`;
  const ownKey = prefix + makeId();
  let events = [];
  let inFlight = false;
  let failures = 0;
  let timer = 0;
  let again = false;

  /** Other tabs read `seen`: a tab that lives renews it, one that closes says so with 0. */
  function store(seen = Date.now()) {
    if (events.length) localStorage.setItem(ownKey, JSON.stringify({ seen, events }));
    else localStorage.removeItem(ownKey);
  }

  /** Take over what closed tabs of this person left behind. Should one live after all, both send the same answers. */
  function adopt() {
    for (const key of Object.keys(localStorage).filter((name) => name.startsWith(prefix) && name !== ownKey)) {
      const box = readBox(key);
      if (!box || Date.now() - box.seen < 3 * HEARTBEAT_MS) continue;
      events.unshift(...box.events);
      store();
      localStorage.removeItem(key);
    }
  }

  const makeBody = (sent, asking) => JSON.stringify({ person: personId, events: sent, ...asking });

  function report(state) {
    onState(state, events.length);
  }

  /** Queue an event; `flush` sends it. */
  function push(event) {
    events.push(event);
    store();
    report(failures ? "retrying" : "saving");
  }

  /** Send what waits and fetch what is needed; one request at a time. */
  async function flush() {
    if (inFlight) {
      again = true;
      return;
    }
    const asking = need();
    const sent = events.slice(0, MAX_EVENTS);
    if (!sent.length && asking.want === 0 && !again) return;
    again = false;
    inFlight = true;
    clearTimeout(timer);
    try {
      const response = await fetch(at("/api/label"), {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: makeBody(sent, asking),
      });
      if (!response.ok) throw new ServerError(response.status, await response.text());
      const answer = await response.json();
      const known = new Set(answer.results.map((result) => result.id));
      events = events.filter((event) => !known.has(event.id));
      store();
      failures = 0;
      report(events.length ? "saving" : "saved");
      onAnswer(answer);
    } catch (error) {
      failures += 1;
      console.warn("not sent yet:", error);
      report(error instanceof ServerError && [401, 409].includes(error.status) ? "signed-out" : "retrying");
    }
    inFlight = false;
    if (failures) timer = setTimeout(flush, RETRY_MS[Math.min(failures, RETRY_MS.length) - 1]);
    else if (events.length || again) flush();
  }

  adopt();
  setInterval(() => {
    adopt();
    if (events.length) store();
    if (events.length && !failures) flush();
  }, HEARTBEAT_MS);
  window.addEventListener("online", flush);
  window.addEventListener("pagehide", () => {
    store(0);
    // The end of the page cuts its requests off, but no beacon; what comes both ways is stored once.
    const body = makeBody(events.slice(0, MAX_EVENTS), {});
    if (events.length) navigator.sendBeacon(at("/api/label"), new Blob([body], { type: "application/json" }));
  });
  window.addEventListener("pageshow", () => store());
  return { push, flush, renew: () => ((again = true), flush()) };
}

/** Another tab's waiting answers; null where they were just taken, or are none of ours to understand. */
function readBox(key) {
  try {
    const box = JSON.parse(localStorage.getItem(key));
    return Array.isArray(box?.events) ? box : null;
  } catch {
    return null;
  }
}

class ServerError extends Error {
  constructor(status, text) {
    super(`${status} ${text.slice(0, 200)}`);
    this.status = status;
  }
}
