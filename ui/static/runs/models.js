// @ts-check
/** Fill the Models page: all that was made, back to its judgments and forward to what was made with it. */

import { make, svg } from "../common/dom.js";
import { ask, at } from "../common/server.js";
import { LATER_MS, addStyle, here, readHash, useAs, watch } from "./watch.js";

/** @import { Details } from "./watch.js" */

/**
 * @typedef {object} Node something that was made, as the server says
 * @property {string} id
 * @property {"judgments" | "labeler" | "dataset" | "reward" | "restorer" | "method" | "use"} group
 * @property {string} title
 * @property {string} kind
 * @property {number | null} run that made it
 * @property {string} state of that run
 * @property {string | null} path
 * @property {string} note
 * @property {{name: string, value: string} | null} figure
 * @property {boolean} simulated whether simulated annotators judged what it came from
 * @property {{human?: number, simulated?: number, people?: number, programs?: number}} judgments
 * @property {{human?: number, svm?: number, constructed?: number}} labels
 * @property {string[]} parents ids of what it was made from
 * @property {string[]} children ids of what was made with it
 *
 * @typedef {{byId: Map<string, Node>, nodes: Node[]}} Graph
 * @typedef {"parents" | "children"} Way
 */

/** @type {[string, string][]} groups with their titles */
const COLUMNS = [
  ["judgments", "Judgments"],
  ["labeler", "Labelers"],
  ["dataset", "Datasets"],
  ["reward", "Reward models"],
  ["restorer", "Restorers"],
  ["method", "Methods"],
];
const MOST_DRAWN = 8; // of a column; the tables below have all
const BOX = { width: 164, height: 64, gapX: 38, gapY: 14, top: 30 };
const count = (/** @type {number} */ number) => number.toLocaleString("en");

/** @param {HTMLElement} root */
export function mount(root) {
  addStyle();
  /** @type {Map<string, string | null>} */
  const memory = new Map();
  const alarm = make("p", { className: "fr-error", role: "alert", hidden: true });
  const drawing = make("div", { className: "fr-scroll" });
  const detail = make("div", { className: "fr-detail", hidden: true });
  const tables = make("div");
  const intro = "Everything here comes from judgments, or from what ships with the program. Choose one to see what it came from and what was made with it.";
  root.replaceChildren(make("h2", {}, "Models"), make("p", { className: "fr-note" }, intro), alarm, drawing, detail, tables);
  document.title = "Models · FaceReward";
  /** @type {Graph | null} */
  let graph = null;

  function show() {
    if (!graph) return;
    const picked = graph.byId.get(readHash().get("model"));
    const on = picked ? new Set([picked.id, ...reach(graph, picked.id, "parents"), ...reach(graph, picked.id, "children")]) : null;
    drawing.replaceChildren(draw(graph, picked, on));
    detail.hidden = !picked || picked.id === "judgments";
    if (!detail.hidden) detail.replaceChildren(...describe(graph, picked));
    tables.replaceChildren(...COLUMNS.slice(1).map(([group, title]) => table(graph, group, title)));
  }

  window.addEventListener("hashchange", show);
  watch(
    async () => {
      const news = await ask("/api/lineage", memory);
      if (news) {
        graph = makeGraph(news);
        show();
      }
      return LATER_MS;
    },
    (error) => {
      alarm.hidden = !error;
      alarm.textContent = error ? `No answer from the server, trying again: ${error.message}` : "";
    },
  );
}

/**
 * Nodes with children beside parents; the judgments are one of them.
 * @param {{judgments: {people: number, programs: number, human: number, simulated: number}, nodes: Node[]}} answer
 * @returns {Graph}
 */
function makeGraph({ judgments, nodes }) {
  /** @type {Node} */
  const root = {
    ...{ id: "judgments", group: "judgments", kind: "", title: "Judgments", judgments, simulated: judgments.simulated > 0 },
    ...{ run: null, state: "", path: null, note: "", figure: null, labels: {}, parents: [], children: [] },
  };
  const byId = new Map([root, ...nodes].map((node) => [node.id, { ...node, children: /** @type {string[]} */ ([]) }]));
  for (const node of byId.values()) {
    const judged = (node.group === "labeler" || node.group === "dataset") && node.judgments.human + node.judgments.simulated > 0;
    if (judged) node.parents = ["judgments", ...node.parents];
    for (const parent of node.parents) byId.get(parent)?.children.push(node.id);
  }
  return { byId, nodes: [...byId.values()] };
}

/**
 * Ids of all that a node came from (`parents`) or that were made with it (`children`), the nearest first.
 * @param {Graph} graph
 * @param {string} id
 * @param {Way} way
 */
function reach(graph, id, way) {
  /** @type {Set<string>} */
  const found = new Set();
  const waiting = [...(graph.byId.get(id)?.[way] ?? [])];
  while (waiting.length) {
    const next = waiting.shift();
    if (found.has(next) || !graph.byId.has(next)) continue;
    found.add(next);
    waiting.push(...graph.byId.get(next)[way]);
  }
  return found;
}

/**
 * @param {Graph} graph
 * @param {Node | undefined} picked
 * @param {Set<string> | null} on what the picked one came from or was used for
 */
function draw(graph, picked, on) {
  /** @type {Map<string, {x: number, y: number}>} */
  const places = new Map();
  let most = 1;
  COLUMNS.forEach(([group], column) => {
    const all = graph.nodes.filter((node) => node.group === group).reverse(); // newest first
    const shown = all.filter((node, place) => place < MOST_DRAWN || on?.has(node.id));
    most = Math.max(most, shown.length);
    shown.forEach((node, row) => places.set(node.id, { x: column * (BOX.width + BOX.gapX) + 1, y: BOX.top + row * (BOX.height + BOX.gapY) }));
  });
  const width = COLUMNS.length * (BOX.width + BOX.gapX) - BOX.gapX + 2;
  const height = BOX.top + most * (BOX.height + BOX.gapY);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: `fr-lineage${on ? " fr-chosen" : ""}`, role: "group", "aria-label": "Lineage" });
  COLUMNS.forEach(([group, title], column) => {
    const all = graph.nodes.filter((node) => node.group === group).length;
    const drawn = graph.nodes.filter((node) => node.group === group && places.has(node.id)).length;
    const words = all > drawn ? `${title} (${drawn} of ${all})` : title;
    picture.append(svg("text", { class: "fr-column", x: column * (BOX.width + BOX.gapX) + 2, y: 16 }, words));
  });
  for (const node of graph.nodes) {
    for (const parent of node.parents) {
      const [from, to] = [places.get(parent), places.get(node.id)];
      if (!from || !to) continue;
      const [x1, y1, x2, y2] = [from.x + BOX.width, from.y + BOX.height / 2, to.x, to.y + BOX.height / 2];
      const side = from.x === to.x; // within a column: around its left side
      const bend = side ? 26 : Math.max(20, (x2 - x1) / 2);
      const d = side ? `M${from.x} ${y1}C${from.x - bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}` : `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
      picture.append(svg("path", { d, class: on?.has(parent) && on.has(node.id) ? "fr-on" : "" }));
    }
  }
  for (const [id, { x, y }] of places) picture.append(box(graph.byId.get(id), x, y, picked, on));
  return picture;
}

/**
 * @param {Node} node
 * @param {number} x
 * @param {number} y
 * @param {Node | undefined} picked
 * @param {Set<string> | null} on
 */
function box(node, x, y, picked, on) {
  const classes = [on?.has(node.id) ? "fr-on" : "", picked?.id === node.id ? "fr-picked" : ""].join(" ").trim();
  const link = svg("a", { class: classes, href: here(picked?.id === node.id ? "" : `model=${encodeURIComponent(node.id)}`) });
  const lines = [cut(node.title, 21), cut(secondLine(node, true), 24)];
  link.append(svg("title", {}, `${node.title}\n${secondLine(node)}\n${judgmentWords(node)}`), svg("rect", { x, y, width: BOX.width, height: BOX.height, rx: 6 }));
  link.append(svg("text", { class: "fr-name", x: x + 9, y: y + 19 }, lines[0]), svg("text", { class: "fr-quiet", x: x + 9, y: y + 36 }, lines[1]));
  const words = node.group === "method" && !node.parents.length ? "" : judgmentWords(node, true);
  link.append(svg("text", { class: node.simulated ? "fr-programs" : "fr-quiet", x: x + 9, y: y + 54 }, cut(words, 24)));
  return link;
}

/** @type {(text: string, most: number) => string} */
const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

/** @param {Node} node */
function secondLine(node, brief = false) {
  if (node.group === "judgments") {
    const { people, programs } = node.judgments;
    return [people || !programs ? `by ${count(people)} people` : "", programs ? `${count(programs)} simulated annotator${programs === 1 ? "" : "s"}` : ""].filter(Boolean).join(", ");
  }
  if (node.group === "method") return brief ? node.note.split(",")[0] : node.note;
  const figure = node.figure ? (brief ? node.figure.value : `${node.figure.value} ${node.figure.name}`) : "";
  const state = ["finished", ""].includes(node.state) ? "" : node.state;
  return [`run ${node.run}`, state, figure].filter(Boolean).join(" · ");
}

/** @param {Node} node */
function judgmentWords(node, brief = false) {
  const { human, simulated } = node.judgments;
  if (!human && !simulated) return node.simulated ? "simulated" : brief ? "no judgments" : "";
  const people = human ? [`${count(human)} human`] : [];
  return [...people, ...(simulated ? [`${count(simulated)} simulated`] : [])].join(" + ");
}

/**
 * Labels by origin; those made of judgments are people's only where no program judged.
 * @param {Node} node
 */
function labelWords(node) {
  const { human = 0, svm = 0, constructed = 0 } = node.labels;
  const from = !node.simulated ? "by people" : node.judgments.human ? "from judgments" : "from simulated judgments";
  return [
    ...(human ? [`${count(human)} ${from}`] : []),
    ...(svm ? [`${count(svm)} by the SVM`] : []),
    ...(constructed ? [`${count(constructed)} constructed`] : []),
  ].join(" + ");
}

/** @param {Node} node */
const groupName = ({ group, kind }) => (group === "use" ? kind : group === "reward" ? "reward model" : group);

/** @param {Node} node */
function linkTo(node) {
  if (node.id === "judgments") return make("span", {}, "judgments");
  const href = node.group === "use" ? at(`/admin/runs#run=${node.run}`) : here(`model=${encodeURIComponent(node.id)}`);
  return make("a", { href }, node.group === "use" ? `run ${node.run}` : node.title);
}

/**
 * @param {Graph} graph
 * @param {Node} node
 */
function describe(graph, node) {
  /** @type {HTMLElement[]} */
  const rows = [];
  if (node.simulated) rows.push(make("p", { className: "fr-simulated" }, "Includes simulated annotators; says nothing about real people."));
  const facts = [groupName(node), node.figure && `${node.figure.name} ${node.figure.value}`, node.note, judgmentWords(node) && `${judgmentWords(node)} judgments`, labelWords(node) && `labels: ${labelWords(node)}`];
  rows.push(make("p", {}, facts.filter(Boolean).join(" · ")));
  /** @type {HTMLElement[]} */
  const links = [];
  if (node.run && node.group !== "method") links.push(make("a", { href: at(`/admin/runs#run=${node.run}`) }, `Run ${node.run}: curves, checkpoints, use as …`));
  if (node.run && node.group === "method") links.push(make("a", { href: at(`/admin/runs#run=${node.run}`) }, `First restored by run ${node.run}`));
  rows.push(make("p", {}, ...links));
  if (node.path) rows.push(make("p", {}, make("code", {}, node.path)));
  if (node.run && node.group !== "method") rows.push(usesOf(node.run));
  rows.push(...chain("Made from", graph, node, "parents"), ...chain("Made with it", graph, node, "children"));
  return [make("h3", {}, node.title), ...rows];
}

/**
 * What its checkpoints can be used for; asked for when it is looked at.
 * @param {number} run
 */
function usesOf(run) {
  const list = make("div");
  ask(`/api/runs/${run}`)
    .then((/** @type {Details} */ found) => list.replaceChildren(...found.checkpoints.map((one) => make("p", {}, make("b", {}, one.name), ": ", ...useAs(one)))))
    .catch(() => {}); // deleted meanwhile; the page says so soon
  return list;
}

/**
 * An indented list of all that a node came from or that was made with it, each once.
 * @param {string} title
 * @param {Graph} graph
 * @param {Node} node
 * @param {Way} way
 */
function chain(title, graph, node, way) {
  const seen = new Set([node.id]);
  /** @type {(id: string) => HTMLElement | null} */
  function list(id) {
    const items = graph.byId.get(id)[way].filter((next) => graph.byId.has(next) && !seen.has(next));
    for (const next of items) seen.add(next);
    if (!items.length) return null;
    return make(
      "ul",
      { className: "fr-chain" },
      ...items.map((next) => {
        const one = graph.byId.get(next);
        const words = one.id === "judgments" ? "" : `${groupName(one)} `;
        return make("li", {}, words, linkTo(one), list(next));
      }),
    );
  }
  const made = list(node.id);
  return made ? [make("h4", {}, title), made] : [];
}

/**
 * @param {Graph} graph
 * @param {string} group
 * @param {string} title
 */
function table(graph, group, title) {
  const nodes = graph.nodes.filter((node) => node.group === group).reverse();
  if (!nodes.length) return make("div");
  const method = group === "method";
  const head = ["Name", method ? "Images" : "Key figure", "Judgments", "Labels", "Made from", "Made with it"];
  const links = (/** @type {string[]} */ ids) => ids.filter((id) => graph.byId.has(id)).flatMap((id, place) => [place ? ", " : "", linkTo(graph.byId.get(id))]);
  return make(
    "div",
    {},
    make("h3", {}, title),
    make(
      "div",
      { className: "fr-scroll" },
      make(
        "table",
        { className: "fr" },
        make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))),
        ...nodes.map((node) =>
          make(
            "tr",
            {},
            make("td", {}, linkTo(node)),
            make("td", {}, method ? node.note : secondLine(node)),
            make("td", { className: node.simulated ? "fr-programs" : "" }, judgmentWords(node)),
            make("td", {}, labelWords(node)),
            make("td", {}, ...links(node.parents)),
            make("td", {}, ...links(node.children)),
          ),
        ),
      ),
    ),
  );
}
