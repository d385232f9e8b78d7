// @ts-check
/** Share between the pages of runs: small elements, asking the server again and again, the state in the address. */

import { make } from "../common/dom.js";
import { at } from "../common/server.js";
import { duration } from "../common/words.js";

/**
 * @typedef {object} Run what the server says of a run
 * @property {number} id
 * @property {string} kind
 * @property {string} state
 * @property {string | null} part what it does just now
 * @property {number | null} done
 * @property {number | null} total
 * @property {number | null} seconds_left
 * @property {string | null} created_at
 * @property {string | null} started_at
 * @property {string | null} ended_at
 * @property {string | null} who
 * @property {string | null} error
 * @property {string | null} why_waiting
 * @property {{name: string, value: string} | null} figure
 *
 * @typedef {object} Details what the server says of a run besides, on its own page
 * @property {Record<string, unknown>} config
 * @property {Record<string, unknown>} result
 * @property {Record<string, unknown>} launcher
 * @property {{stop: boolean, continue: boolean, clone: boolean, delete: boolean}} can
 * @property {Checkpoint[]} checkpoints
 * @property {Check[]} checks
 * @property {number[]} after
 * @property {string} command
 * @property {string} code_version
 * @property {string} folder
 * @property {string | null} out
 * @property {string | null} device
 * @property {string | null} host
 * @property {number} bytes
 *
 * @typedef {{first: number, last: number, seen: string, action: string, factor: number, why: string}} Check of the monitor
 * @typedef {{name: string, path: string, step: number | null, bytes: number, uses: {words: string, href: string}[]}} Checkpoint
 */

/** Put the style sheet of these pages into the document, once. */
export function addStyle() {
  if (document.getElementById("fr-watch-style")) return;
  document.head.append(make("link", { id: "fr-watch-style", rel: "stylesheet", href: at("/static/runs/watch.css") }));
}

/** The page's state, kept behind the # of its address: a reload or a link shows the same. */
export const readHash = () => new URLSearchParams(location.hash.slice(1));

/**
 * The address of this page with another state; '#…' alone would lead to the first page, by Gradio's <base>.
 * @param {string} hash
 */
export const here = (hash = "") => `${location.pathname}#${hash}`;

/** The table of runs as it was last looked at, filters and all. */
export const table = { hash: "" };
export const backLink = () => make("p", {}, make("a", { href: here(table.hash) }, "← All runs"));

/** @param {Record<string, any>} values */
export function writeHash(values) {
  const words = Object.entries(values).filter(([, value]) => value !== "" && value != null);
  const text = words.map(([name, value]) => `${name}=${encodeURIComponent(value).replaceAll("%2C", ",")}`).join("&");
  if (text !== location.hash.slice(1)) location.hash = text;
}

/**
 * Call `look` now and repeatedly while the page is in view; it returns the milliseconds until the next call. Never two
 * at a time. `onError` is called with the error of a look that fails, and with null after one that does not.
 * @param {() => Promise<number>} look
 * @param {(error: Error | null) => void} onError
 */
export function watch(look, onError) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
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

/**
 * A progress bar with its share; an empty text where nothing is known.
 * @param {Run} run
 * @param {string} label
 */
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

/** @param {string} state */
export function stateMark(state) {
  return make("span", { className: `fr-state fr-${state}` }, state);
}

/**
 * Configs as rows: 'train.max_steps' -> value as text.
 * @param {unknown} value
 * @param {string} prefix
 * @param {Map<string, string>} into
 */
export function flatten(value, prefix = "", into = new Map()) {
  if (value !== null && typeof value === "object" && !Array.isArray(value)) {
    for (const [name, item] of Object.entries(value)) flatten(item, prefix ? `${prefix}.${name}` : name, into);
  } else into.set(prefix, typeof value === "string" ? value : JSON.stringify(value));
  return into;
}

/**
 * '2 min 3 s left' of a run that goes on, else how long it took.
 * @param {Run} run
 */
export function timeOf(run) {
  if (LIVE.includes(run.state) && run.seconds_left != null) return `${duration(run.seconds_left)} left`;
  if (!run.started_at) return "";
  const end = run.ended_at ? Date.parse(run.ended_at) : Date.now();
  return duration((end - Date.parse(run.started_at)) / 1_000);
}

/**
 * What a checkpoint can be used for, each a link into the Train page.
 * @param {Checkpoint} checkpoint
 */
export function useAs(checkpoint) {
  return ["use to ", ...checkpoint.uses.flatMap(({ words, href }, place) => [place ? " · " : "", make("a", { href: at(href) }, words)])];
}
