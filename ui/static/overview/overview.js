// @ts-check
/** Fill the Overview page: what to do next and why, the loop as it stands, what runs, what failed, what waits. */

import { make } from "../common/dom.js";
import { ask, at } from "../common/server.js";
import { LATER_MS, SOON_MS, addStyle, bar, stateMark, timeOf, watch } from "../runs/watch.js";

/**
 * @import { Run } from "../runs/watch.js"
 * @typedef {{words: string, href: string}} Link
 * @typedef {object} Stage
 * @property {string} name
 * @property {string} title
 * @property {string} count
 * @property {string} unit
 * @property {string[]} facts
 * @property {"empty" | "done" | "running" | "stopped" | "care"} state
 * @property {boolean} simulated
 * @property {Link} link
 * @typedef {object} Overview
 * @property {{text: string, link: Link, also: Link | null}} advice
 * @property {Stage[]} stages
 * @property {Run[]} running
 * @property {Run[]} failed
 * @property {Link[]} waiting
 */

const SIMULATED = "SIMULATED annotators had a part in this: it says nothing about real people.";
const STATES = { empty: "", done: "✓", running: "●", stopped: "○", care: "▲" };
const WORDS = { empty: "not begun", done: "there", running: "goes on", stopped: "stopped", care: "needs a look" };

/** @param {HTMLElement} root */
export function mount(root) {
  addStyle();
  /** @type {Map<string, string | null>} */
  const memory = new Map();
  const alarm = make("p", { className: "fr-error", role: "alert", hidden: true });
  const advice = make("section", { className: "ov-advice", "aria-labelledby": "ov-next" });
  const loop = make("ol", { className: "ov-loop" });
  const running = make("section");
  const failed = make("section");
  const waiting = make("section");
  root.replaceChildren(make("h2", {}, "Overview"), alarm, advice, loop, make("div", { className: "ov-lists" }, running, failed, waiting), machine());
  document.title = "Overview · FaceReward";
  let busy = false;

  async function look() {
    if (!root.isConnected) watching.end();
    const found = /** @type {Overview | null} */ (await ask("/api/overview", memory));
    if (found) {
      busy = found.running.length > 0;
      const focusAgain = noteFocus(root);
      showAdvice(advice, found);
      loop.replaceChildren(...found.stages.map(showStage));
      showRuns(running, "Goes on now", found.running);
      showRuns(failed, "Failed", found.failed);
      showWaiting(waiting, found.waiting);
      focusAgain();
    }
    return busy ? SOON_MS : 2 * LATER_MS;
  }

  const watching = watch(look, (error) => {
    alarm.hidden = !error;
    alarm.textContent = error ? `No answer from the server, trying again: ${error.message}` : "";
  });
}

/**
 * @param {Link} target
 * @param {string} className
 */
const link = ({ words, href }, className = "") => make("a", { href: at(href), className }, words);

/**
 * Note which link has the keyboard's focus; what is returned gives it to the one that stands for it after a change.
 * @param {HTMLElement} root
 */
function noteFocus(root) {
  /** @param {HTMLAnchorElement} one */
  const name = (one) => one.closest("[data-stage]")?.getAttribute("data-stage") ?? (one.className || one.href);
  const focused = /** @type {HTMLAnchorElement | null} */ (root.querySelector("a:focus"));
  const wanted = focused && name(focused);
  return () => (wanted ? [...root.querySelectorAll("a")].find((one) => name(one) === wanted)?.focus() : undefined);
}

/**
 * The sentence stays in one element, or a screen reader would not say that it has changed.
 * @param {HTMLElement} section
 * @param {Overview} found
 */
function showAdvice(section, { advice }) {
  if (!section.firstChild) section.append(make("h3", { id: "ov-next" }, "Next"), make("p", { role: "status", dir: "auto" }), make("p"));
  const [, said, links] = section.children;
  if (said.textContent !== advice.text) said.textContent = advice.text;
  links.replaceChildren(link(advice.link, "ov-do"), ...(advice.also ? [link(advice.also, "ov-also")] : []));
}

/** @param {Stage} stage */
function showStage(stage) {
  const mark = make("span", { className: "ov-mark", role: "img", "aria-label": WORDS[stage.state] }, STATES[stage.state]);
  const item = make(
    "li",
    { className: `ov-stage ov-${stage.state}` },
    make("h3", {}, stage.title, mark),
    make("p", { className: "ov-count" }, make("b", {}, stage.count || "–"), make("small", {}, stage.count ? ` ${stage.unit}` : "")),
    make("ul", {}, ...stage.facts.map((fact) => make("li", {}, fact))),
    stage.simulated ? make("p", { className: "fr-simulated", title: SIMULATED }, "SIMULATED") : null,
    make("p", { className: "ov-link" }, link(stage.link)),
  );
  item.dataset.stage = stage.name;
  return item;
}

/**
 * @param {HTMLElement} section
 * @param {string} title
 * @param {Run[]} runs
 */
function showRuns(section, title, runs) {
  section.hidden = runs.length === 0;
  section.replaceChildren(make("h3", {}, title), make("ul", {}, ...runs.map(showRun)));
}

/** @param {Run} run */
function showRun(run) {
  const remark = run.error ?? run.why_waiting ?? "";
  return make(
    "li",
    {},
    make("a", { href: at(`/admin/runs#run=${run.id}`) }, `${run.id} · ${run.kind}`),
    " ",
    stateMark(run.state),
    " ",
    bar(run),
    ` ${timeOf(run)} `,
    remark ? make("span", { className: "fr-note", title: remark }, remark.slice(0, 160)) : null,
  );
}

/**
 * @param {HTMLElement} section
 * @param {Link[]} waiting
 */
function showWaiting(section, waiting) {
  section.hidden = waiting.length === 0;
  section.replaceChildren(make("h3", {}, "Waits for a person"), make("ul", {}, ...waiting.map((one) => make("li", {}, link(one)))));
}

/** A folded panel of what this machine has and lacks; asked for when it is opened. */
function machine() {
  const list = make("ul", { className: "ov-machine" });
  const panel = make("details", {}, make("summary", {}, "This machine: libraries, GPUs, weights, disk"), list);
  panel.addEventListener("toggle", async () => {
    if (!panel.open) return;
    list.replaceChildren(make("li", { className: "fr-note" }, "Looking …"));
    try {
      const { findings } = await ask("/api/overview/machine");
      list.replaceChildren(...findings.map(showFinding));
    } catch (error) {
      list.replaceChildren(make("li", { className: "fr-error", role: "alert" }, /** @type {Error} */ (error).message));
    }
  });
  return panel;
}

/** @param {{mark: "ok" | "note" | "care" | "fault", name: string, seen: string, todo: string}} finding */
function showFinding({ mark, name, seen, todo }) {
  return make(
    "li",
    { className: `ov-finding-${mark}` },
    make("b", {}, `${{ ok: "✓", note: "·", care: "▲", fault: "✕" }[mark]} ${name}`),
    ` ${seen}`,
    todo ? make("span", { className: "ov-todo" }, ` → ${todo}`) : null,
  );
}
