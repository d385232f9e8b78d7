// @ts-check
/** Compare several runs: their curves over one another, their configs with the differences marked. */

import { make } from "../common/dom.js";
import { ask } from "../common/server.js";
import { COLOURS, arrange, makeChart } from "./charts.js";
import { makeSeries } from "./series.js";
import { LATER_MS, LIVE, SOON_MS, backLink, flatten, here, stateMark, timeOf, watch } from "./watch.js";

/** @import { Details, Run } from "./watch.js" */

/**
 * @param {HTMLElement} root
 * @param {number[]} ids
 */
export function compareView(root, ids) {
  /** @type {Map<string, string | null>} */
  const memory = new Map();
  const several = ids.map((id) => ({ id, series: makeSeries(id), run: /** @type {Run & Details} */ (null) }));
  /** @type {Map<string, ReturnType<typeof makeChart>>} */
  const charts = new Map(); // series name -> chart
  const alarm = make("p", { className: "fr-error", role: "alert", hidden: true });
  const heads = make("div", { className: "fr-heads" });
  const curves = make("div");
  const only = make("input", { type: "checkbox", checked: true, on: { change: showConfigs } });
  const configs = make("div", { className: "fr-scroll" });
  let key = "";
  root.replaceChildren(
    backLink(),
    make("h2", {}, `Runs ${ids.join(", ")}`),
    alarm,
    heads,
    curves,
    make("h3", {}, "Configs"),
    make("p", {}, make("label", {}, only, " Only what differs")),
    configs,
  );
  const watching = watch(look, showError);

  async function look() {
    const news = await Promise.all(
      several.map(async (one) => {
        const found = await ask(`/api/runs/${one.id}`, memory);
        one.run = found ?? one.run;
        const grown = (found || LIVE.includes(one.run.state)) && (await one.series.look());
        return { found, grown };
      }),
    );
    if (news.some(({ found }) => found)) {
      showHeads();
      showConfigs();
    }
    if (news.some(({ grown }) => grown)) showCurves();
    return several.some(({ run }) => LIVE.includes(run.state)) ? SOON_MS : LATER_MS;
  }

  function showHeads() {
    heads.replaceChildren(
      ...several.map(({ id, run }, place) => {
        const swatch = make("i", { className: "fr-swatch" });
        swatch.style.background = COLOURS[place % COLOURS.length];
        const figure = run.figure ? ` · ${run.figure.value} ${run.figure.name}` : "";
        return make("span", {}, swatch, make("a", { href: here(`run=${id}`) }, `${id} · ${run.kind}`), " ", stateMark(run.state), ` ${timeOf(run)}${figure}`);
      }),
    );
  }

  function showCurves() {
    const names = [...new Set(several.flatMap(({ series }) => [...series.all.keys()]))];
    const shared = names.filter((name) => several.filter(({ series }) => series.all.has(name)).length > 1);
    const sections = arrange(shared);
    if (JSON.stringify(sections) !== key) {
      key = JSON.stringify(sections);
      charts.clear();
      curves.replaceChildren(
        ...(sections.length ? [] : [make("p", { className: "fr-note" }, "These runs have no series in common.")]),
        ...sections.map(({ title, charts: some }) => {
          const own = some.flatMap((one) => one.names);
          const grid = make("div", { className: own.length > 2 ? "fr-charts fr-small" : "fr-charts" });
          for (const name of own) {
            charts.set(name, makeChart(name, { small: own.length > 2 }));
            grid.append(charts.get(name).element);
          }
          return make("div", {}, make("h4", {}, title), grid);
        }),
      );
    }
    for (const [name, chart] of charts) {
      const lines = several.map(({ id, series }, place) => ({ name: `run ${id}`, colour: place, ...series.all.get(name) }));
      chart.draw(lines.filter(({ x }) => x));
    }
  }

  function showConfigs() {
    if (several.some(({ run }) => !run)) return;
    const flat = several.map(({ run }) => flatten({ kind: run.kind, ...run.config, "code version": run.code_version }));
    const names = [...new Set(flat.flatMap((one) => [...one.keys()]))];
    const rows = names
      .map((name) => ({ name, values: flat.map((one) => one.get(name)) }))
      .map((row) => ({ ...row, differs: new Set(row.values).size > 1 }))
      .filter(({ differs }) => differs || !only.checked);
    const head = make("tr", {}, make("th", { scope: "col" }, "Setting"), ...ids.map((id) => make("th", { scope: "col" }, `run ${id}`)));
    configs.replaceChildren(
      rows.length
        ? make(
            "table",
            { className: "fr" },
            make("thead", {}, head),
            ...rows.map(({ name, values, differs }) =>
              make(
                "tr",
                { className: differs ? "fr-differs" : "" },
                make("th", { scope: "row" }, differs ? `≠ ${name}` : name),
                ...values.map((value) => make("td", {}, value ?? "–")),
              ),
            ),
          )
        : make("p", { className: "fr-note" }, "Nothing differs."),
    );
  }

  /** @param {Error | null} error */
  function showError(error) {
    alarm.hidden = !error;
    alarm.textContent = error ? error.message : "";
  }

  return { end: watching.end };
}
