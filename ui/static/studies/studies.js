// @ts-check
/** Fill the Studies page: who stands where, places, quality, pay; open, pause, close; files; forgetting a person. */

import { make } from "../common/dom.js";
import { ask, at, post } from "../common/server.js";
import { duration } from "../common/words.js";
import { here, readHash, watch } from "../runs/watch.js";

/**
 * @typedef {{part: number, of: number, share: number, low: number, high: number}} Share
 * @typedef {object} Participant
 * @property {number} number
 * @property {string} stage
 * @property {string | null} outcome
 * @property {string | null} reason
 * @property {number} answers
 * @property {number} gold_right
 * @property {number} gold_wrong
 * @property {number} active_seconds
 * @property {boolean} flagged
 * @property {boolean} has_id
 * @typedef {object} Study
 * @property {string} name
 * @property {"draft" | "open" | "paused" | "closed"} state
 * @property {string} panel
 * @property {string} link
 * @property {number} places
 * @property {number} places_left
 * @property {number} answers_wanted
 * @property {number} answers_done
 * @property {Record<string, number>} flow
 * @property {{outcome: string, count: number, reasons: [string, number][]}[]} ended
 * @property {{gold: Share | null, repeats: Share | null, left: Share | null, warned: number, stopped: number}} quality
 * @property {{currency: string, owed_cents: number, paid_cents: number, announced_cents: number, quartiles_cents: [number, number, number] | null, below: [number, number][], top_up_cents: number}} pay
 * @property {Participant[]} participants
 */

const LOOK_MS = 3_000;
const SURE_MS = 5_000;
/** @type {Record<Study["state"], [string, string][]>} */
const MOVES = {
  draft: [["open", "Open"], ["closed", "Close for good"]],
  open: [["paused", "Pause"], ["closed", "Close for good"]],
  paused: [["open", "Open again"], ["closed", "Close for good"]],
  closed: [],
};
const FILES = [["ledger.csv", "Ledger (CSV)"], ["bonuses.csv", "Bonus list (CSV)"], ["export.zip", "Participants, events, answers, results (ZIP)"]];

/** @param {HTMLElement} root */
export function mount(root) {
  document.title = "Studies · FaceReward";
  /** @type {Map<string, string | null>} */
  const memory = new Map();
  const alarm = make("p", { className: "fr-error", role: "alert", hidden: true });
  const said = make("p", { role: "status" });
  const names = make("nav", { className: "st-names", "aria-label": "Studies" });
  const body = make("div");
  root.replaceChildren(make("h2", {}, "Studies"), alarm, names, body, said);
  let shown = "";

  /** @param {() => Promise<any>} action */
  async function act(action) {
    try {
      const answer = await action();
      said.textContent = answer.said ?? "";
      alarm.hidden = true;
    } catch (error) {
      alarm.hidden = false;
      alarm.textContent = /** @type {Error} */ (error).message;
    }
    watching.now();
  }

  async function look() {
    if (!root.isConnected) watching.end();
    const { studies } = await ask("/api/studies");
    const id = readHash().get("study") ?? studies[0]?.id;
    showNames(names, studies, String(id));
    if (id === undefined) {
      body.replaceChildren(make("p", {}, "No study yet. ", make("code", {}, "python -m annotate study create NAME --from study.toml"), " makes one; docs/studies.md has an example."));
      return LOOK_MS;
    }
    if (String(id) !== shown) memory.clear();
    const address = `/api/studies/${id}`;
    const study = /** @type {Study | null} */ (await ask(address, memory));
    if (study) {
      const opened = new Set([...body.querySelectorAll("details[open]")].map((one) => one.id));
      const focused = document.activeElement?.closest("#fr-studies [data-focus]")?.getAttribute("data-focus");
      body.replaceChildren(...showStudy(study, address, act));
      for (const one of body.querySelectorAll("details")) one.open = opened.has(one.id);
      if (focused) /** @type {HTMLElement | null} */ (body.querySelector(`[data-focus="${focused}"]`))?.focus();
      shown = String(id);
    }
    return LOOK_MS;
  }

  const watching = watch(look, (error) => {
    if (error) alarm.textContent = `No answer from the server, trying again: ${error.message}`;
    if (error || alarm.textContent?.startsWith("No answer")) alarm.hidden = !error;
  });
  addEventListener("hashchange", watching.now);
}

/**
 * @param {HTMLElement} nav
 * @param {{id: number, name: string, state: string}[]} studies
 * @param {string} current
 */
function showNames(nav, studies, current) {
  const text = JSON.stringify([studies, current]);
  if (nav.dataset.shown === text) return;
  nav.dataset.shown = text;
  nav.hidden = studies.length < 2;
  nav.replaceChildren(
    ...studies.map(({ id, name, state }) => {
      const link = make("a", { href: here(`study=${id}`) }, `${name} · ${state}`);
      if (String(id) === current) link.setAttribute("aria-current", "page");
      return link;
    }),
  );
}

/**
 * @param {Study} study
 * @param {string} address of the study on the server
 * @param {(action: () => Promise<any>) => void} act
 */
function showStudy(study, address, act) {
  const buttons = MOVES[study.state].map(([state, words]) => {
    const move = () => act(() => post(`${address}/state`, { state }));
    return state === "closed" ? sureButton(words, move, state) : actButton(words, move, state);
  });
  return [
    make("div", { className: "st-head" }, make("h3", {}, study.name), make("span", { className: `st-state st-${study.state}` }, study.state), make("span", { className: "st-quiet" }, study.panel), ...buttons),
    showFlow(study),
    showEnds(study),
    make("div", { className: "st-facts" }, showPlaces(study), showQuality(study), showPay(study)),
    showLink(study),
    make("p", { className: "st-files" }, "Download: ", ...FILES.flatMap(([file, words]) => [make("a", { href: at(`${address}/files/${file}`), download: `${study.name}-${file}` }, words), " "])),
    showParticipants(study, address, act),
  ];
}

/** @param {Study} study */
function showFlow({ flow }) {
  const most = Math.max(1, flow.arrived);
  return make(
    "ol",
    { className: "st-flow", "aria-label": "Who stands where" },
    ...Object.entries(flow).map(([step, count]) => {
      const fill = make("i", {});
      fill.style.width = `${(100 * count) / most}%`;
      return make("li", { className: step === "at work" ? "st-now" : step === "done" ? "st-done" : "" }, make("b", {}, String(count)), make("small", {}, step), make("span", { className: "st-fill", "aria-hidden": "true" }, fill));
    }),
  );
}

/** @param {Study} study */
function showEnds({ ended }) {
  if (!ended.length) return make("p", { className: "st-quiet" }, "Nobody's way has ended otherwise.");
  return make(
    "dl",
    { className: "st-ends" },
    ...ended.flatMap(({ outcome, count, reasons }) => [
      make("dt", {}, `${count} ${outcome.replaceAll("_", " ")}`),
      make("dd", {}, reasons.map(([reason, times]) => (times > 1 ? `${times} × ${reason}` : reason)).join(" · ")),
    ]),
  );
}

/**
 * @param {string} title
 * @param {string} figure
 * @param {(string | null)[]} facts
 */
function box(title, figure, facts) {
  return make("section", {}, make("h4", {}, title), make("p", { className: "st-figure" }, figure), make("ul", {}, ...facts.filter((fact) => fact).map((fact) => make("li", {}, fact))));
}

/** @param {Study} study */
function showPlaces({ places, places_left, answers_done, answers_wanted }) {
  return box("Places left", `${places_left} of ${places}`, [`${answers_done.toLocaleString("en")} of ${answers_wanted.toLocaleString("en")} answers`]);
}

/** @param {number} share */
const percent = (share) => `${Math.round(100 * share)} %`;

/** @param {Study} study */
function showQuality({ quality }) {
  const { gold, repeats, left } = quality;
  return box("Gold pairs right", gold ? percent(gold.share) : "–", [
    gold ? `${gold.part} of ${gold.of}, 95 % interval ${percent(gold.low)} to ${percent(gold.high)}` : "none answered yet",
    repeats ? `${percent(repeats.share)} of ${repeats.of} repeats alike` : null,
    left ? `left image chosen in ${percent(left.share)} of ${left.of}` : null,
    `${quality.warned} warned, ${quality.stopped} stopped`,
  ]);
}

/** @param {number} cents */
const money = (cents) => (cents / 100).toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });

/** @param {Study} study */
function showPay({ name, pay }) {
  const rates = pay.quartiles_cents;
  const below = pay.below.map(([number, cents]) => `#${number} (${money(cents)})`).join(", ");
  return box("Pay an hour, median", rates ? `${money(rates[1])} ${pay.currency}` : "–", [
    rates ? `middle half ${money(rates[0])} to ${money(rates[2])}` : "nobody is done yet",
    pay.announced_cents ? `announced ${money(pay.announced_cents)}` : null,
    `owed ${money(pay.owed_cents)} ${pay.currency}, of it paid ${money(pay.paid_cents)}`,
    below ? `below it: ${below}. annotate study pay "${name}" --top-up gives ${money(pay.top_up_cents)}` : null,
  ]);
}

/** @param {Study} study */
function showLink({ link }) {
  const field = make("input", { id: "st-link", readOnly: true, value: link });
  const copy = actButton("Copy", async () => {
    field.select();
    await navigator.clipboard.writeText(link);
    copy.textContent = "Copied";
  }, "copy");
  return make("p", { className: "st-link" }, make("label", { htmlFor: "st-link" }, "Address for the panel"), field, copy);
}

/**
 * @param {Study} study
 * @param {string} address
 * @param {(action: () => Promise<any>) => void} act
 */
function showParticipants({ participants }, address, act) {
  const head = ["number", "where", "answers", "gold right", "at work", "why", "panel's id"].map((word) => make("th", { scope: "col" }, word));
  const rows = participants.map((one) => {
    /** @param {boolean} answers */
    const forget = (answers) => act(() => post(`${address}/forget`, { number: one.number, answers }));
    const id = one.has_id ? [sureButton("Delete id", () => forget(false), `id${one.number}`), sureButton("… and answers", () => forget(true), `all${one.number}`)] : ["none"];
    return make(
      "tr",
      {},
      make("th", { scope: "row" }, `#${one.number}${one.flagged ? " ▲" : ""}`),
      make("td", {}, (one.outcome ?? one.stage).replaceAll("_", " ")),
      make("td", { className: "n" }, String(one.answers)),
      make("td", { className: "n" }, one.gold_right + one.gold_wrong ? `${one.gold_right} of ${one.gold_right + one.gold_wrong}` : ""),
      make("td", { className: "n" }, duration(one.active_seconds)),
      make("td", { className: "st-why" }, one.reason ?? ""),
      make("td", {}, ...id),
    );
  });
  const table = make("table", { className: "fr" }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
  const scroll = make("div", { className: "st-scroll", tabIndex: 0, role: "region", "aria-label": "Participants" }, table);
  return make("details", { id: "st-people" }, make("summary", {}, `Participants (${participants.length}); ▲: warned or stopped`), scroll);
}

/**
 * @param {string} words
 * @param {() => void} action
 * @param {string} name what finds it again after the page was drawn anew
 */
function actButton(words, action, name) {
  const made = make("button", { type: "button", on: { click: action } }, words);
  made.dataset.focus = name;
  return made;
}

/**
 * A button for what cannot be undone: it acts on a second press.
 * @param {string} words
 * @param {() => void} action
 * @param {string} name
 */
function sureButton(words, action, name) {
  let sure = false;
  const made = actButton(words, press, name);
  made.classList.add("st-final");
  function press() {
    if (sure) return action();
    sure = true;
    made.textContent = "Really? It is for good";
    setTimeout(() => {
      sure = false;
      made.textContent = words;
    }, SURE_MS);
  }
  return made;
}
