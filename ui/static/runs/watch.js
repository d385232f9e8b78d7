/** What the pages that watch runs share: small elements, asking the server again and again, words for numbers. */

import { at } from "../common/dom.js";

/** An element with properties and children; texts are texts, never HTML. */
export function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on") for (const [event, action] of Object.entries(value)) made.addEventListener(event, action);
    else if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  if (typeof children[0] === "string") made.dir = "auto"; // people's names and captions in the direction of their script
  return made;
}

/** Put the style sheet of these pages into the document, once. */
export function addStyle() {
  if (document.getElementById("fr-watch-style")) return;
  document.head.append(make("link", { id: "fr-watch-style", rel: "stylesheet", href: at("/static/runs/watch.css") }));
}

/** The page's state, kept behind the # of its address: a reload or a link shows the same. */
export const readHash = () => new URLSearchParams(location.hash.slice(1));

/** The address of this page with another state; '#…' alone would lead to the first page, by Gradio's <base>. */
export const here = (hash = "") => `${location.pathname}#${hash}`;

/** The table of runs as it was last looked at, filters and all. */
export const table = { hash: "" };
export const backLink = () => make("p", {}, make("a", { href: here(table.hash) }, "← All runs"));

export function writeHash(values) {
  const words = Object.entries(values).filter(([, value]) => value !== "" && value != null);
  const text = words.map(([name, value]) => `${name}=${encodeURIComponent(value).replaceAll("%2C", ",")}`).join("&");
  if (text !== location.hash.slice(1)) location.hash = text;
}

/** The JSON of an address; null where it is as it was when it was last asked for with the same `memory`. */
export async function ask(address, memory) {
  const known = memory?.get(address);
  const response = await fetch(at(address), { cache: "no-store", headers: known ? { "If-None-Match": known } : {} });
  if (response.status === 304) return null;
  if (response.status === 401) location.assign(at(`/sign-in?next=${encodeURIComponent(location.pathname)}`));
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw Object.assign(new Error(body.error ?? body.detail ?? `The server said ${response.status}.`), { status: response.status });
  memory?.set(address, response.headers.get("ETag"));
  return body;
}

/** Ask for something to be done; what is refused is thrown as an Error of one line. */
export async function post(address, body = {}) {
  const response = await fetch(at(address), {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? answer.detail ?? `The server said ${response.status}.`);
  return answer;
}

/**
 * Call `look` now and again every so often while the page is in view; it returns in how many milliseconds to look
 * again. Never two at once; a look that fails is told to `onError`, and the next one tells it null.
 */
export function watch(look, onError) {
  let timer = null;
  let ended = false;
  let looking = false;
  let again = false;

  async function turn() {
    clearTimeout(timer);
    if (ended || document.hidden) return;
    if (looking) {
      again = true;
      return;
    }
    looking = true;
    let wait = 5_000;
    try {
      wait = await look();
      if (!ended) onError(null);
    } catch (error) {
      if (!ended) onError(error);
    }
    looking = false;
    if (ended) return;
    timer = setTimeout(turn, again ? 0 : wait);
    again = false;
  }

  document.addEventListener("visibilitychange", turn);
  turn();
  return {
    now: turn,
    end() {
      ended = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", turn);
    },
  };
}

export const LIVE = ["queued", "running", "stopping"];
export const SOON_MS = 1_500;
export const LATER_MS = 2_000;

export function duration(seconds) {
  if (seconds == null || seconds < 0) return "";
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3_600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  const hours = Math.floor(seconds / 3_600);
  if (hours < 48) return `${hours} h ${Math.round((seconds % 3_600) / 60)} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function size(bytes) {
  if (bytes < 1_000) return `${bytes} B`;
  const power = Math.min(4, Math.floor(Math.log10(bytes) / 3));
  return `${(bytes / 1_000 ** power).toPrecision(3)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
}

export const moment = (text) => (text ? new Date(text).toLocaleString([], { dateStyle: "short", timeStyle: "short" }) : "");

/** A progress bar with its share; an empty text where nothing is known. */
export function bar(run, label = "") {
  const part = LIVE.includes(run.state) ? (run.part ?? "") : "";
  if (run.done == null || !run.total) return make("span", { className: "fr-note" }, part);
  const share = Math.min(1, run.done / run.total);
  const inner = make("i", {});
  inner.style.width = `${(100 * share).toFixed(1)}%`;
  const full = make("span", { className: "fr-bar", role: "progressbar", "aria-label": label || `Progress of run ${run.id}` }, inner);
  full.setAttribute("aria-valuenow", String(run.done));
  full.setAttribute("aria-valuemin", "0");
  full.setAttribute("aria-valuemax", String(run.total));
  return make("span", { className: "fr-progress" }, full, `${Math.floor(100 * share)} %`, part ? ` ${part}` : "");
}

export function stateMark(state) {
  return make("span", { className: `fr-state fr-${state}` }, state);
}

/** Configs as rows: 'train.max_steps' -> value as text. */
export function flatten(value, prefix = "", into = new Map()) {
  if (value !== null && typeof value === "object" && !Array.isArray(value)) {
    for (const [name, item] of Object.entries(value)) flatten(item, prefix ? `${prefix}.${name}` : name, into);
  } else into.set(prefix, typeof value === "string" ? value : JSON.stringify(value));
  return into;
}

/** '2 min 3 s left' of a run that goes on, else how long it took. */
export function timeOf(run) {
  if (LIVE.includes(run.state) && run.seconds_left != null) return `${duration(run.seconds_left)} left`;
  if (!run.started_at) return "";
  const end = run.ended_at ? new Date(run.ended_at) : new Date();
  return duration((end - new Date(run.started_at)) / 1_000);
}

/** What a checkpoint can be used for, each a link into the Train page. */
export function useAs(checkpoint) {
  return ["use to ", ...checkpoint.uses.flatMap(({ words, href }, place) => [place ? " · " : "", make("a", { href: at(href) }, words)])];
}
