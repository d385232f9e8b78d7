// @ts-check
/** Fill the Runs page: a table of runs; one run is shown by run.js, several side by side by compare.js. */

import { make } from "../common/dom.js";
import { ask, at } from "../common/server.js";
import { moment } from "../common/words.js";
import { compareView } from "./compare.js";
import { runView } from "./run.js";
import { LATER_MS, SOON_MS, addStyle, bar, here, readHash, stateMark, table, timeOf, watch, writeHash } from "./watch.js";

/** @import { Run } from "./watch.js" */

const STATES = ["live", "queued", "running", "stopping", "stopped", "finished", "failed", "lost"];
const HEAD = ["", "Run", "State", "Progress", "Time", "Key figure", "Who", "Started", "Remark"];

/**
 * Show what the address says, in an element of the page.
 * @param {HTMLElement} root
 */
export function mount(root) {
  addStyle();
  /** @type {{key?: string, end: () => void, update?: (hash: URLSearchParams) => void} | null} */
  let view = null;
  function show() {
    const hash = readHash();
    const key = hash.get("run") ? `run ${hash.get("run")}` : hash.get("compare") ? `compare ${hash.get("compare")}` : "table";
    if (view?.key === key) return view.update?.(hash);
    view?.end();
    const run = Number(hash.get("run"));
    const several = (hash.get("compare") ?? "").split(",").map(Number).filter(Boolean);
    if (run) view = runView(root, run);
    else if (several.length) view = compareView(root, several);
    else view = tableView(root, hash);
    view.key = key;
    if (key === "table") document.title = "Runs · FaceReward";
    scrollTo(0, 0);
  }
  window.addEventListener("hashchange", show);
  show();
}

/**
 * @param {HTMLElement} root
 * @param {URLSearchParams} firstHash
 */
function tableView(root, firstHash) {
  /** @type {Map<string, string | null>} */
  const memory = new Map();
  /** @type {Map<number, ReturnType<typeof makeRow>>} */
  const rows = new Map(); // run id -> its row
  /** @type {Set<number>} */
  const chosen = new Set();
  let asked = readAsked(firstHash);
  let live = false; // whether any run of all goes on

  const alarm = make("p", { className: "fr-error", role: "alert", hidden: true });
  const state = select("State", ["all states", ...STATES], "", (value) => filter({ state: value }));
  const kind = select("Kind", ["all kinds"], "", (value) => filter({ kind: value }));
  const compare = make("button", { type: "button", disabled: true, on: { click: () => writeHash({ compare: [...chosen].sort((a, b) => a - b).join(",") }) } });
  const body = make("tbody");
  const grid = make("table", { className: "fr fr-runs" }, make("thead", {}, make("tr", {}, ...HEAD.map((name) => make("th", { scope: "col" }, name)))), body);
  const empty = make("p", { className: "fr-note", hidden: true });
  const newest = make("button", { type: "button", hidden: true, on: { click: () => filter({ before: "" }) } }, "Newest");
  const older = make("button", { type: "button", hidden: true }, "Older runs");
  older.addEventListener("click", () => filter({ before: [...rows.keys()].sort((a, b) => a - b)[0] }, true));
  root.replaceChildren(
    make("h2", {}, "Runs"),
    alarm,
    make("div", { className: "fr-tools" }, state.label, kind.label, compare),
    make("div", { className: "fr-scroll" }, grid),
    empty,
    make("div", { className: "fr-tools" }, newest, older),
  );
  showChosen();
  const watching = watch(look, showError);

  /** @param {URLSearchParams} hash */
  function readAsked(hash) {
    table.hash = hash.toString();
    return { state: hash.get("state") ?? "", kind: hash.get("kind") ?? "", before: hash.get("before") ?? "" };
  }

  /**
   * @param {Record<string, unknown>} change
   * @param {boolean} paging
   */
  function filter(change, paging = false) {
    writeHash({ ...asked, ...(paging ? {} : { before: "" }), ...change });
  }

  async function look() {
    const words = new URLSearchParams(Object.entries(asked).filter(([, value]) => value));
    const answer = await ask(`/api/runs?${words}`, memory);
    if (answer) showRows(answer);
    for (const row of rows.values()) row.showTime();
    return live ? SOON_MS : LATER_MS;
  }

  /** @param {{runs: Run[], kinds: string[], live: boolean, more: boolean}} answer */
  function showRows(answer) {
    live = answer.live;
    setOptions(kind.select, ["all kinds", ...answer.kinds], asked.kind);
    state.select.value = asked.state;
    const ids = new Set(answer.runs.map((run) => run.id));
    for (const [id, row] of rows) {
      if (ids.has(id)) continue;
      row.element.remove();
      rows.delete(id);
    }
    answer.runs.forEach((run, place) => {
      if (!rows.has(run.id)) rows.set(run.id, makeRow(run.id, chosen, showChosen));
      const row = rows.get(run.id);
      row.update(run);
      if (body.children[place] !== row.element) body.insertBefore(row.element, body.children[place] ?? null);
    });
    grid.hidden = !answer.runs.length;
    empty.hidden = Boolean(answer.runs.length);
    empty.replaceChildren(
      ...(asked.state || asked.kind || asked.before
        ? ["No run matches these filters."]
        : ["No runs yet. Start one on the ", make("a", { href: at("/admin/train") }, "Train page"), ", or in a terminal: it shows here just the same."]),
    );
    newest.hidden = !asked.before;
    older.hidden = !answer.more;
  }

  function showChosen() {
    compare.textContent = chosen.size < 2 ? "Compare: choose two or more" : `Compare ${chosen.size} runs`;
    compare.disabled = chosen.size < 2;
  }

  /** @param {Error | null} error */
  function showError(error) {
    alarm.hidden = !error;
    alarm.textContent = error ? `No answer from the server, trying again: ${error.message}` : "";
  }

  return {
    end: watching.end,
    /** @param {URLSearchParams} hash */
    update(hash) {
      asked = readAsked(hash);
      memory.clear();
      watching.now();
    },
  };
}

/**
 * @param {number} id
 * @param {Set<number>} chosen
 * @param {() => void} onChoice
 */
function makeRow(id, chosen, onChoice) {
  const box = make("input", { type: "checkbox", checked: chosen.has(id), "aria-label": `Choose run ${id}` });
  box.addEventListener("change", () => {
    if (box.checked) chosen.add(id);
    else chosen.delete(id);
    onChoice();
  });
  const link = make("a", { href: here(`run=${id}`) });
  const cells = Array.from({ length: HEAD.length - 2 }, () => make("td"));
  const element = make("tr", {}, make("td", {}, box), make("td", {}, link), ...cells);
  const [state, progress, time, figure, who, started, remark] = cells;
  /** @type {Run} */
  let run;
  return {
    element,
    /** @param {Run} given */
    update(given) {
      run = given;
      link.textContent = `${run.id} · ${run.kind}`;
      state.replaceChildren(stateMark(run.state));
      progress.replaceChildren(bar(run));
      figure.replaceChildren(...(run.figure ? [make("b", {}, run.figure.value), make("small", {}, ` ${run.figure.name}`)] : []));
      who.textContent = run.who ?? "";
      started.textContent = moment(run.started_at ?? run.created_at);
      remark.replaceChildren(make("span", { className: "fr-remark", title: run.error ?? "" }, run.error ?? run.why_waiting ?? ""));
    },
    showTime() {
      time.textContent = timeOf(run);
    },
  };
}

/**
 * @param {string} words
 * @param {string[]} names
 * @param {string} value
 * @param {(value: string) => void} onChange
 */
function select(words, names, value, onChange) {
  const made = make("select", { on: { change: () => onChange(made.value) } });
  setOptions(made, names, value);
  return { select: made, label: make("label", {}, `${words} `, made) };
}

/**
 * The first name stands for all, the empty value.
 * @param {HTMLSelectElement} made
 * @param {string[]} names
 * @param {string} value
 */
function setOptions(made, names, value) {
  if (made.options.length !== names.length || [...made.options].some((option, place) => option.text !== names[place])) {
    made.replaceChildren(...names.map((name, place) => make("option", { value: place ? name : "" }, name)));
  }
  made.value = value;
}
