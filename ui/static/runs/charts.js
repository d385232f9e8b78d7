// @ts-check
/** Draw line charts as SVG: axes with ticks, a legend, the values under the pointer. */

import { svg } from "../common/dom.js";

// Okabe and Ito's, as runs/pictures.py has them; black is the text's colour, so that it is seen in the dark too.
export const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "currentColor", "#8C8C8C"];
/**
 * @typedef {{name: string, x: number[], y: (number | null)[], label?: string, colour?: number}} Line
 * @typedef {(value: number) => number} Place from a value to the drawing
 */

const DASHES = ["", "6 3", "2 3"]; // after as many series as there are colours
const MARGIN = { left: 54, right: 10, top: 8, bottom: 24 };

/**
 * A number in at most four significant digits.
 * @param {number | null | undefined} value
 */
export function short(value) {
  if (value == null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

/**
 * Round numbers of an axis from low to high, at most about `count`.
 * @param {number} low
 * @param {number} high
 * @param {number} count
 * @returns {number[]}
 */
export function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((one) => one * power >= rough);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at += 1) found.push(at * step);
  return found;
}

/**
 * @param {number} low
 * @param {number} high
 * @returns {number[]}
 */
export function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power += 1) {
    for (const digit of high - low < 2 ? [1, 2, 5] : [1]) {
      const at = power + Math.log10(digit);
      if (at >= low - 1e-9 && at <= high + 1e-9) found.push(at);
    }
  }
  return found.length > 8 ? found.filter((_, place) => place % Math.ceil(found.length / 6) === 0) : found;
}

/**
 * @param {(number | null)[]} values
 * @returns {[number, number]}
 */
function range(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value == null) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

/**
 * The place in ascending numbers that is nearest to a value.
 * @param {number[]} sorted
 * @param {number} value
 */
export function nearest(sorted, value) {
  let [from, to] = [0, sorted.length - 1];
  while (from < to) {
    const middle = (from + to) >> 1;
    if (sorted[middle] < value) from = middle + 1;
    else to = middle;
  }
  return from > 0 && value - sorted[from - 1] < sorted[from] - value ? from - 1 : from;
}

/**
 * A chart of a title; `draw([{name, x, y}, …])` redraws it, null in y is a gap. Lines keep their colour by their place.
 * A series may bring `label`, what the legend calls it, and `colour`, its place in COLOURS.
 * @param {string} title
 */
export function makeChart(title, { small = false, xName = "step" } = {}) {
  const [width, height] = small ? [340, 150] : [560, 190];
  const box = document.createElement("figure");
  box.className = "fr-chart";
  const head = document.createElement("figcaption");
  const name = document.createElement("b");
  name.textContent = title;
  const log = document.createElement("button");
  log.type = "button";
  log.textContent = "log";
  log.title = "Logarithmic scale";
  log.setAttribute("aria-pressed", "false");
  head.append(name, log);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  const legend = document.createElement("ul");
  box.append(head, picture, legend);

  /** @type {Line[]} */
  let series = [];
  /** @type {Set<string>} */
  const hidden = new Set();
  /** @type {{toX: Place, toY: Place, place: (value: number) => number | null, xLow: number, xSpan: number} | null} */
  let scale = null; // how numbers became places, for the pointer
  let drawn = "";

  log.addEventListener("click", () => {
    log.setAttribute("aria-pressed", String(log.getAttribute("aria-pressed") !== "true"));
    paint();
  });

  /** @param {Line[]} given */
  function draw(given) {
    const state = JSON.stringify(given.map(({ name, x }) => [name, x.length, x.at(-1)])) + given.map(({ y }) => y.at(-1)).join();
    if (state === drawn) return;
    drawn = state;
    series = given;
    paint();
  }

  function paint() {
    const shown = series.filter((one) => !hidden.has(one.name));
    const [lowest] = range(series.flatMap((one) => range(one.y)));
    log.hidden = !(lowest > 0);
    const logarithmic = !log.hidden && log.getAttribute("aria-pressed") === "true";
    /** @type {(value: number) => number | null} */
    const place = (value) => (!logarithmic ? value : value > 0 ? Math.log10(value) : null);
    const [xLow, xHigh] = range(shown.flatMap((one) => [one.x[0], one.x.at(-1)]));
    const bounds = shown.flatMap((one) => range(one.y).map(place));
    let [low, high] = range(bounds.filter(Number.isFinite));
    picture.replaceChildren();
    scale = null;
    if (!(xHigh >= xLow && high >= low)) {
      picture.append(svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "nothing yet"));
      return paintLegend(null);
    }
    if (high === low) [low, high] = [low - Math.abs(low || 1) * 0.1, high + Math.abs(high || 1) * 0.1];
    else [low, high] = [low - (high - low) * 0.04, high + (high - low) * 0.04];
    const xSpan = xHigh - xLow || 1;
    const toX = (/** @type {number} */ x) => MARGIN.left + ((x - xLow) / xSpan) * (width - MARGIN.left - MARGIN.right);
    const toY = (/** @type {number} */ y) => height - MARGIN.bottom - ((y - low) / (high - low)) * (height - MARGIN.top - MARGIN.bottom);
    scale = { toX, toY, place, xLow, xSpan };
    paintAxes(logarithmic ? logTicks(low, high) : ticks(low, high, small ? 4 : 5), xHigh > xLow ? ticks(xLow, xHigh, small ? 4 : 6) : [xLow], logarithmic);
    for (const one of shown) paintLine(one, toX, toY, place);
    picture.append(svg("line", { class: "fr-pointer", y1: MARGIN.top, y2: height - MARGIN.bottom, visibility: "hidden" }));
    paintLegend(null);
  }

  /**
   * @param {number[]} yTicks
   * @param {number[]} xTicks
   * @param {boolean} logarithmic
   */
  function paintAxes(yTicks, xTicks, logarithmic) {
    const { toX, toY } = scale;
    for (const at of yTicks) {
      const y = toY(at).toFixed(1);
      picture.append(svg("line", { class: "fr-grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }));
      const text = short(logarithmic ? 10 ** at : Math.abs(at) < 1e-12 ? 0 : at);
      picture.append(svg("text", { x: MARGIN.left - 6, y: Number(y) + 4, "text-anchor": "end" }, text));
    }
    const base = height - MARGIN.bottom;
    picture.append(svg("line", { class: "fr-axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: base, y2: base }));
    for (const at of xTicks.filter((tick) => Number.isInteger(tick))) {
      const x = toX(at).toFixed(1);
      picture.append(svg("line", { class: "fr-axis", x1: x, x2: x, y1: base, y2: base + 4 }));
      const anchor = toX(at) > width - 30 ? "end" : "middle";
      picture.append(svg("text", { x, y: height - 6, "text-anchor": anchor }, at.toLocaleString("en")));
    }
  }

  /**
   * @param {Line} one
   * @param {Place} toX
   * @param {Place} toY
   * @param {(value: number) => number | null} place
   */
  function paintLine(one, toX, toY, place) {
    let path = "";
    let before = false; // whether the last point is there to draw on from
    for (let at = 0; at < one.x.length; at += 1) {
      const value = one.y[at] == null ? null : place(one.y[at]);
      if (value == null) {
        before = false;
        continue;
      }
      const point = `${toX(one.x[at]).toFixed(1)} ${toY(value).toFixed(1)}`;
      const alone = !before && (at + 1 === one.x.length || one.y[at + 1] == null);
      path += before ? `L${point}` : `M${point}`;
      if (alone) path += "h0.01"; // a dot, by the round end of the line
      before = true;
    }
    const { colour, dash } = styleOf(one);
    picture.append(svg("path", { d: path, stroke: colour, "stroke-dasharray": dash, class: one.x.length === 1 ? "fr-dot" : "fr-line" }));
  }

  /** @param {Line} one */
  function styleOf(one) {
    const number = one.colour ?? series.indexOf(one);
    return { colour: COLOURS[number % COLOURS.length], dash: DASHES[Math.floor(number / COLOURS.length) % DASHES.length] };
  }

  /**
   * Name and value of each line: the last one, or that at a step.
   * @param {number | null} step
   */
  function paintLegend(step) {
    legend.replaceChildren(
      ...series.map((one) => {
        const item = document.createElement("li");
        const toggle = document.createElement("button");
        toggle.type = "button";
        toggle.setAttribute("aria-pressed", String(!hidden.has(one.name)));
        const key = svg("svg", { viewBox: "0 0 18 8", width: 18, height: 8, "aria-hidden": "true" });
        const { colour, dash } = styleOf(one);
        key.append(svg("line", { x1: 1, x2: 17, y1: 4, y2: 4, stroke: colour, "stroke-dasharray": dash, "stroke-width": 3 }));
        const value = document.createElement("span");
        const at = step == null ? lastPlace(one.y) : nearest(one.x, step);
        value.textContent = at < 0 ? "–" : short(one.y[at]);
        value.className = "fr-value";
        toggle.append(key, ` ${one.label ?? one.name} `, value);
        toggle.addEventListener("click", () => {
          if (!hidden.delete(one.name)) hidden.add(one.name);
          paint();
        });
        item.append(toggle);
        return item;
      }),
    );
    if (step == null) return;
    const item = document.createElement("li");
    item.className = "fr-at";
    item.textContent = `${xName} ${Math.round(step).toLocaleString("en")}`;
    legend.append(item);
  }

  picture.addEventListener("pointermove", (event) => {
    const pointer = picture.querySelector(".fr-pointer");
    if (!scale || !pointer) return;
    const frame = picture.getBoundingClientRect();
    const inside = ((event.clientX - frame.left) / frame.width) * width;
    const share = (inside - MARGIN.left) / (width - MARGIN.left - MARGIN.right);
    const longest = series.reduce((most, one) => (one.x.length > most.length ? one.x : most), /** @type {number[]} */ ([]));
    if (!longest.length || share < -0.05 || share > 1.05) return;
    const step = longest[nearest(longest, scale.xLow + share * scale.xSpan)];
    const x = scale.toX(step).toFixed(1);
    for (const end of ["x1", "x2"]) pointer.setAttribute(end, x);
    pointer.setAttribute("visibility", "visible");
    paintLegend(step);
  });
  picture.addEventListener("pointerleave", () => {
    picture.querySelector(".fr-pointer")?.setAttribute("visibility", "hidden");
    paintLegend(null);
  });

  return { element: box, draw };
}

/** @param {(number | null)[]} values */
function lastPlace(values) {
  let at = values.length - 1;
  while (at >= 0 && values[at] == null) at -= 1;
  return at;
}

/* ---- which series stand in one chart ---- */

const SECTIONS = [
  { title: "Accuracy", test: /^(val\/(accuracy|low|high)|rewards\/accuracies)$/, shared: true },
  { title: "Rewards", test: /^(reward|rewards\/(?!accuracies).*)$/, shared: true },
  { title: "Comparing groups", test: /^(group_spread|divergence|ratio|clipped)$/ },
  { title: "Hacking monitor, on held-out faces", test: /^held_out\//, together: ["held_out/live", "held_out/frozen"] },
  { title: "Brake", test: /^brake\// },
  { title: "Losses", test: /^(loss(\/.*)?|val\/loss)$/, shared: true },
  { title: "Gradient norms", test: /^gradient_norm(\/.*)?$/, shared: true },
  { title: "Reward model, as it learns", test: /^live_reward\// },
];

/**
 * Names of series in their charts: [{title, charts: [{title, names}]}]. Those of one kind share a chart; what has scales
 * of its own (metrics, rates) has charts of its own.
 * @param {string[]} names
 */
export function arrange(names) {
  const left = new Set(names);
  const take = (/** @type {(name: string) => boolean} */ test) => [...left].filter((name) => test(name) && left.delete(name));
  const found = [];
  for (const { title, test, shared, together = [] } of SECTIONS) {
    const own = take((name) => test.test(name));
    if (!own.length) continue;
    if (shared) {
      found.push({ title, charts: [{ title, names: own }] });
      continue;
    }
    const first = own.filter((name) => together.includes(name));
    const rest = own.filter((name) => !together.includes(name)).map((name) => ({ title: plain(name), names: [name] }));
    found.push({ title, charts: [...(first.length ? [{ title: "rewards", names: first }] : []), ...rest] });
  }
  const prefixes = [...new Set([...left].map((name) => (name.includes("/") ? name.split("/")[0] : "")))].sort();
  for (const prefix of prefixes) {
    const own = take((name) => (name.includes("/") ? name.split("/")[0] : "") === prefix);
    found.push({ title: { "": "Other", val: "Validation" }[prefix] ?? prefix, charts: own.map((name) => ({ title: name.slice(prefix ? prefix.length + 1 : 0), names: [name] })) });
  }
  return found;
}

/** @param {string} name */
const plain = (name) => name.slice(name.indexOf("/") + 1).replaceAll("_", " ");

/**
 * What a chart's legend calls its series: without what all of their names begin with.
 * @param {string[]} names
 */
export function legendNames(names) {
  const prefixes = new Set(names.map((name) => name.split("/")[0]));
  return names.map((name) => (prefixes.size === 1 ? name.slice(name.indexOf("/") + 1) : name));
}
