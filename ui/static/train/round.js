// @ts-check
/** Show the next round: its settings, all that it will do as a list, and the button that starts it. */

import { button, make } from "../common/dom.js";
import { ask, post } from "../common/server.js";
import { alert, linkRuns, note, showCommand } from "./controls.js";
import { makeField, makeInput } from "./fields.js";

/** @import { Field, Input } from "./address.js" */

const PLAN_AFTER_MS = 250;

/**
 * @typedef {object} Plan what the server says of a round with some settings
 * @property {number} round its number
 * @property {string} folder
 * @property {Input & {default: string}} restorer
 * @property {Field[]} fields
 * @property {Step[]} plan
 * @property {string[]} notes
 * @property {Record<string, string>} errors by name of a field; '' for the whole round
 *
 * @typedef {{words: string, command: string, device: string | null, after: number[]}} Step a run of the round
 */

/** @param {HTMLElement} section the element to fill */
export async function mountRound(section) {
  section.className = "tr-round";
  section.setAttribute("aria-labelledby", "tr-round-title");
  const intro = make("p");
  const shown = make("div", { className: "tr-grid" });
  const folded = make("div", { className: "tr-grid" });
  const notes = make("div");
  const list = make("ol", { className: "tr-plan" });
  const faults = make("div", { "aria-live": "polite" });
  const start = button("Start the round", begin);
  start.className = "tr-primary";
  const done = make("div", { role: "status" });
  section.replaceChildren(
    make("h3", { id: "tr-round-title" }, "Next round"),
    intro,
    make("div", {}, shown),
    make("details", {}, make("summary", {}, "More settings"), folded),
    ...[notes, list, faults, start, done],
  );
  /** @type {ReturnType<typeof makeInput>} */
  let restorer;
  /** @type {Map<string, ReturnType<typeof makeField>>} */
  const fields = new Map();
  let number = 0; // of the round
  let plans = 0;
  let timer = 0;
  await plan({});
  if (new URLSearchParams(location.hash.slice(1)).has("round")) section.scrollIntoView();

  /** @param {Record<string, unknown>} values */
  async function plan(values) {
    const own = ++plans;
    /** @type {Plan} */
    let answer;
    try {
      answer = await ask(`/api/train/round?${new URLSearchParams(/** @type {Record<string, string>} */ (values))}`);
    } catch {
      start.disabled = true;
      return faults.replaceChildren(alert("The plan could not be made; reload the page."));
    }
    if (own !== plans) return;
    if (!restorer) fillForm(answer);
    number = answer.round;
    intro.textContent =
      `Goes from the judgments so far to the next pairs to judge, in ${answer.plan.length || "some"} runs that wait for one another. ` +
      `Round ${answer.round} writes into ${answer.folder}. Nothing starts before you press the button.`;
    notes.replaceChildren(...answer.notes.map(note));
    list.replaceChildren(...answer.plan.map(showStep));
    showErrors(answer.errors);
  }

  /** @param {Plan} answer */
  function fillForm(answer) {
    restorer = makeInput(answer.restorer, [answer.restorer.default], changed);
    shown.append(restorer.element);
    for (const field of answer.fields) {
      const made = makeField({ ...field, key: `round.${field.name}` }, field.default, undefined, changed);
      fields.set(field.name, made);
      (field.shown ? shown : folded).append(made.element);
    }
  }

  function changed() {
    clearTimeout(timer);
    timer = setTimeout(() => plan(collect()), PLAN_AFTER_MS);
  }

  function collect() {
    const values = [...fields].filter(([, field]) => field.isChanged()).map(([name, field]) => [name, field.value()]);
    return { restorer: restorer.values()[0] ?? "", ...Object.fromEntries(values) };
  }

  /** @param {Record<string, string>} errors by name of a field; '' for the whole round */
  function showErrors(errors) {
    restorer.setError(errors.restorer);
    for (const [name, field] of fields) field.setError(errors[name]);
    faults.replaceChildren(...(errors[""] ? [alert(errors[""])] : []));
    start.disabled = Object.keys(errors).length > 0;
  }

  async function begin() {
    start.disabled = true; // pressed twice, it starts once
    done.replaceChildren();
    try {
      const { runs } = await post("/api/train/round", { round: number, values: collect() });
      done.replaceChildren(make("p", { className: "tr-done" }, `Round ${number} was started: `, ...linkRuns(runs), "."));
    } catch (error) {
      return showErrors(error.errors);
    }
    await plan(collect());
    start.disabled = true; // so that a second press does not start the next round
  }
}

/** @param {Step} step */
function showStep({ words, command, device, after }) {
  const more = [device && `on ${device}`, after.length && `after step ${after.map((place) => place + 1).join(", ")}`].filter(Boolean).join(", ");
  const code = make("code");
  showCommand(code, command);
  const text = `${words[0].toUpperCase()}${words.slice(1)}`;
  return make("li", {}, make("p", {}, text, more ? make("span", { className: "fr-note" }, ` (${more})`) : null), code);
}
