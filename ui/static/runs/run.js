// @ts-check
/** Show one run: its progress, growing curves, samples, checkpoints, log and config, and its buttons. */

import { make } from "../common/dom.js";
import { ask, at, post } from "../common/server.js";
import { moment, size } from "../common/words.js";
import { arrange, legendNames, makeChart } from "./charts.js";
import { makeSeries } from "./series.js";
import { LATER_MS, LIVE, SOON_MS, backLink, bar, flatten, stateMark, table, timeOf, useAs, watch } from "./watch.js";

/** @import { Details, Run } from "./watch.js" */

/**
 * @param {HTMLElement} root
 * @param {number} id
 */
export function runView(root, id) {
  /** @type {Map<string, string | null>} */
  const memory = new Map();
  const series = makeSeries(id);
  /** @type {Map<string, {chart: ReturnType<typeof makeChart>, names: string[]}>} */
  const charts = new Map(); // name of a chart -> {chart, names}
  /** @type {Run & Details} */
  let run;
  let arranged = ""; // which series stand in which charts

  const alarm = make("p", { className: "fr-error", role: "alert", hidden: true });
  const refusal = make("p", { className: "fr-error", role: "alert", hidden: true });
  const title = make("h2", {}, `Run ${id}`);
  const status = make("div", { className: "fr-status", role: "status" });
  const reason = make("p", { className: "fr-error", hidden: true });
  const hacking = make("p", { className: "fr-error", hidden: true });
  const buttons = make("div", { className: "fr-tools" });
  const confirm = make("div", { className: "fr-confirm", hidden: true });
  const curves = section("Curves");
  const samples = section("Samples");
  const pictures = section("Pictures");
  const checks = section("Checks of the monitor");
  const checkpoints = section("Checkpoints");
  const log = section("Log");
  const result = section("Result");
  const config = section("Config");
  const logText = make("pre", { className: "fr-log", tabIndex: 0 });
  log.body.append(logText);
  const showGrid = gridView(samples.body, id);
  root.replaceChildren(
    backLink(),
    title,
    alarm,
    status,
    reason,
    hacking,
    buttons,
    refusal,
    confirm,
    ...[curves, samples, pictures, checks, checkpoints, result, config, log].map(({ element }) => element),
  );
  const watching = watch(look, showError);

  async function look() {
    const news = await ask(`/api/runs/${id}`, memory);
    if (news) {
      run = news;
      showRun();
    }
    const live = LIVE.includes(run.state);
    if (live || news) {
      const [grown] = await Promise.all([series.look(), lookAtLog()]);
      if (grown) showCurves();
      if (grown || news) await lookAtSamples();
    }
    status.querySelector(".fr-time")?.replaceChildren(timeOf(run));
    return live ? SOON_MS : LATER_MS;
  }

  function showRun() {
    title.textContent = `Run ${id} · ${run.kind}`;
    document.title = `Run ${id} · FaceReward`;
    const figure = run.figure && make("span", {}, make("b", {}, run.figure.value), ` ${run.figure.name}`);
    status.replaceChildren(stateMark(run.state), bar(run), make("span", { className: "fr-time" }, timeOf(run)), ...(figure ? [figure] : []));
    const words = run.error ?? run.why_waiting;
    reason.hidden = !words;
    reason.className = run.error ? "fr-error" : "fr-note";
    reason.textContent = words ?? "";
    hacking.hidden = run.result.hacking == null;
    const braked = run.checks.some((one) => one.action) ? " What the brake did stands below." : "";
    hacking.textContent = `Reward hacking, first seen at step ${Number(run.result.hacking).toLocaleString("en")}: the reward rose while independent judges fell.${braked}`;
    showButtons();
    showChecks();
    showCheckpoints();
    showConfig();
  }

  function showButtons() {
    /** @type {HTMLElement[]} */
    const made = [];
    if (run.can.stop) made.push(action("Stop", () => post(`/api/runs/${id}/stop`), run.state === "stopping" ? "Stopping …" : ""));
    if (run.can.continue) made.push(action("Continue", () => post(`/api/runs/${id}/continue`)));
    if (run.can.clone) made.push(make("a", { className: "fr-button", href: at(`/admin/train#from=${id}`) }, "Clone"));
    if (run.can.delete) made.push(make("button", { type: "button", on: { click: askToDelete } }, "Delete …"));
    buttons.replaceChildren(...made);
    if (!run.can.delete) confirm.hidden = true;
  }

  /**
   * A button that does something once; a refusal of the server is shown below the buttons.
   * @param {string} words
   * @param {() => Promise<unknown>} doIt
   * @param {string} busy what the button says instead, disabled
   */
  function action(words, doIt, busy = "") {
    const made = make("button", { type: "button", disabled: Boolean(busy) }, busy || words);
    made.addEventListener("click", async () => {
      made.disabled = true;
      refusal.hidden = true;
      setTimeout(watching.now, 200); // shows that it stops while the answer waits for the end
      try {
        await doIt();
      } catch (error) {
        refused(error);
        made.disabled = false;
      }
      watching.now();
    });
    return made;
  }

  async function askToDelete() {
    refusal.hidden = true;
    const found = await ask(`/api/runs/${id}/deletion`).catch(refused);
    if (!found) return;
    const also = make("input", { type: "checkbox", disabled: Boolean(found.out_kept) });
    const sure = make("button", { type: "button", className: "fr-danger" });
    const name = () => (sure.textContent = `Delete for good, free ${size(found.folder_bytes + (also.checked ? found.out_bytes : 0))}`);
    also.addEventListener("change", name);
    sure.addEventListener("click", async () => {
      sure.disabled = true;
      try {
        await post(`/api/runs/${id}/delete`, { also_out: also.checked });
        location.hash = table.hash;
      } catch (error) {
        refused(error);
        sure.disabled = false;
      }
    });
    const keep = make("button", { type: "button", on: { click: () => (confirm.hidden = true) } }, "Keep it");
    name();
    const rows = [make("p", {}, `Deletes run ${id} and its folder ${found.folder}: ${size(found.folder_bytes)}.`)];
    if (found.out) {
      rows.push(make("p", {}, make("label", {}, also, ` Also what it made, ${found.out}: ${size(found.out_bytes)}`)));
      if (found.out_kept) rows.push(make("p", { className: "fr-note" }, found.out_kept));
    }
    if (found.kept) rows.splice(0, rows.length, make("p", {}, found.kept));
    confirm.replaceChildren(...rows, make("div", { className: "fr-tools" }, ...(found.kept ? [] : [sure]), keep));
    confirm.hidden = false;
    (found.kept ? keep : sure).focus();
  }

  function showCurves() {
    curves.element.hidden = series.all.size === 0;
    const wanted = arrange([...series.all.keys()]);
    const key = JSON.stringify(wanted);
    if (arranged !== key) {
      arranged = key;
      charts.clear();
      curves.body.replaceChildren(
        ...wanted.map(({ title: heading, charts: some }) => {
          const grid = make("div", { className: some.length > 2 ? "fr-charts fr-small" : "fr-charts" });
          for (const { title: name, names } of some) {
            const chart = makeChart(name, { small: some.length > 2 });
            charts.set(`${heading}/${name}`, { chart, names });
            grid.append(chart.element);
          }
          const alone = some.length === 1 && some[0].title === heading;
          return alone ? grid : make("div", {}, make("h4", {}, heading), grid);
        }),
      );
      joinSingles(curves.body);
    }
    for (const { chart, names } of charts.values()) {
      const labels = legendNames(names);
      chart.draw(names.map((name, place) => ({ name, label: labels[place], ...series.all.get(name) })));
    }
  }

  async function lookAtLog() {
    const news = await ask(`/api/runs/${id}/log?bytes=20000`, memory);
    if (!news) return;
    const atEnd = logText.scrollHeight - logText.scrollTop - logText.clientHeight < 40;
    logText.textContent = news.there || run.state === "queued" ? news.text || "Nothing printed yet." : "Started in a terminal, which has its output.";
    if (atEnd) logText.scrollTop = logText.scrollHeight;
  }

  async function lookAtSamples() {
    const news = await ask(`/api/runs/${id}/samples`, memory);
    if (!news) return;
    samples.element.hidden = !news.grids.length;
    showGrid(news.grids);
    pictures.element.hidden = !news.pictures.length;
    pictures.body.replaceChildren(
      ...news.pictures.map((/** @type {string} */ name) => make("figure", { className: "fr-picture" }, image(id, name, name), make("figcaption", {}, name))),
    );
  }

  function showChecks() {
    const braked = run.checks.some((one) => one.action);
    checks.element.hidden = !run.checks.length;
    checks.body.replaceChildren(
      make(
        "div",
        { className: "fr-scroll fr-checks" },
        make(
          "table",
          { className: "fr" },
          make("thead", {}, make("tr", {}, ...["Step", "Seen", ...(braked ? ["Done", "Learning rate"] : []), "Why"].map((name) => make("th", { scope: "col" }, name)))),
          make(
            "tbody",
            {},
            ...run.checks.map((one) =>
              make(
                "tr",
                { className: one.seen === "good" ? "" : "fr-doubt" },
                make("th", { scope: "row" }, stepsOf(one)),
                make("td", {}, one.seen),
                ...(braked ? [make("td", {}, DONE[one.action] ?? one.action), make("td", { className: "n" }, `× ${one.factor}`)] : []),
                make("td", {}, one.why),
              ),
            ),
          ),
        ),
      ),
    );
  }

  function showCheckpoints() {
    checkpoints.element.hidden = !run.checkpoints.length;
    checkpoints.body.replaceChildren(
      make(
        "div",
        { className: "fr-scroll" },
        make(
          "table",
          { className: "fr" },
          ...run.checkpoints.map((one) =>
            make(
              "tr",
              {},
              make("th", { scope: "row" }, one.name),
              make("td", {}, one.step == null ? "" : `step ${one.step.toLocaleString("en")}`),
              make("td", { className: "n" }, size(one.bytes)),
              make("td", {}, ...useAs(one)),
              make("td", {}, make("code", {}, one.path)),
            ),
          ),
        ),
      ),
    );
  }

  function showConfig() {
    /** @type {Map<string, string>} */
    const about = new Map();
    if (run.command) about.set("command", run.command);
    if (run.who) about.set("started by", run.who);
    about.set("requested", moment(run.created_at));
    if (run.ended_at) about.set("ended", moment(run.ended_at));
    if (run.device) about.set("device", run.device);
    if (run.host) about.set("host", run.host);
    if (Object.keys(run.launcher).length) about.set("launched with", JSON.stringify(run.launcher));
    if (run.after.length) about.set("waits for", run.after.map((one) => `run ${one}`).join(", "));
    about.set("code version", run.code_version);
    about.set("folder", run.folder);
    if (run.out) about.set("made", run.out);
    about.set("on disk", size(run.bytes));
    const settings = flatten(run.config);
    const more = settings.size ? [make("h4", {}, "Settings"), definitions(settings)] : [];
    config.body.replaceChildren(definitions(about, "fr-one"), ...more);
    const found = flatten(run.result);
    result.element.hidden = found.size === 0;
    result.body.replaceChildren(definitions(found, "fr-one"));
  }

  /** @param {Error} error */
  function refused(error) {
    refusal.hidden = false;
    refusal.textContent = error.message;
  }

  /** @param {(Error & {status?: number}) | null} error */
  function showError(error) {
    if (error?.status === 404) {
      watching.end();
      root.replaceChildren(backLink(), make("h2", {}, `Run ${id}`), make("p", { className: "fr-error", role: "alert" }, error.message));
      return;
    }
    alarm.hidden = !error;
    alarm.textContent = error ? `No answer from the server, trying again: ${error.message}` : "";
  }

  return { end: watching.end };
}

/** @type {Record<string, string>} what the brake did, in words */
const DONE = { keep: "kept", wait: "waited", lower: "learning rate lowered", back: "went back", stop: "went back and stopped" };

/** @param {import("./watch.js").Check} check */
function stepsOf({ first, last }) {
  const words = [first, last].map((step) => step.toLocaleString("en"));
  return first === last ? words[0] : words.join(" – ");
}

/** @param {string} title */
function section(title) {
  const body = make("div");
  const element = make("details", { open: true, hidden: true, className: "fr-section" }, make("summary", {}, make("h3", {}, title)), body);
  if (title === "Config" || title === "Log") element.hidden = false;
  return { element, body };
}

/**
 * Charts that stand alone under no heading go side by side.
 * @param {HTMLElement} body
 */
function joinSingles(body) {
  const singles = [...body.children].filter((child) => child.classList.contains("fr-charts"));
  if (singles.length < 2) return;
  const [first, ...others] = singles;
  for (const other of others) {
    first.append(...other.children);
    other.remove();
  }
}

/**
 * @param {Map<string, string>} rows
 * @param {string} className
 */
function definitions(rows, className = "") {
  return make("dl", { className: `fr-list ${className}` }, ...[...rows].map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

/**
 * @param {number} id of the run
 * @param {string} name
 * @param {string} words
 */
function image(id, name, words) {
  return make("img", { src: at(`/api/runs/${id}/samples/${encodeURIComponent(name)}`), alt: words, loading: "lazy" });
}

/**
 * A sample grid with a slider over the steps; it stays at the newest while it is there.
 * @param {HTMLElement} body
 * @param {number} id of the run
 */
function gridView(body, id) {
  const picture = image(id, "", "");
  picture.removeAttribute("src");
  picture.className = "fr-grid-image";
  const slider = make("input", { type: "range", min: 0, step: 1, "aria-label": "Step of the samples" });
  const words = make("output", {});
  body.append(
    make("div", { className: "fr-tools" }, slider, words),
    picture,
    make("p", { className: "fr-note" }, "Rows: what was given, first restored, restored now, ground truth."),
  );
  /** @type {string[]} */
  let names = [];
  function show() {
    const name = names[slider.valueAsNumber];
    if (!name) return;
    const step = Number(name.replace(".png", "")).toLocaleString("en");
    words.textContent = `step ${step}`;
    picture.src = at(`/api/runs/${id}/samples/${name}`);
    picture.alt = `Samples of step ${step}`;
  }
  slider.addEventListener("input", show);
  return (/** @type {string[]} */ given) => {
    const atEnd = !names.length || slider.valueAsNumber === names.length - 1;
    names = given;
    slider.max = String(Math.max(0, names.length - 1));
    if (atEnd) slider.value = slider.max;
    show();
  };
}
