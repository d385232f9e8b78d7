// @ts-check
/** Fill the Train page: a form that the server describes and checks while it is filled in, its plan, and the next round. */

import { make } from "../common/dom.js";
import { ask, post } from "../common/server.js";
import { readAsked, writeAsked } from "./address.js";
import { alert, labelled, note } from "./controls.js";
import { makeForm } from "./form.js";
import { makePlace, usualDevice } from "./place.js";
import { makePlan } from "./plan.js";
import { mountRound } from "./round.js";

/** @import { Asked, Kind } from "./address.js" */

const CHECK_AFTER_MS = 250;
const FORM_ID = "tr-form";
const GROUPS = { annotate: "Labels", reward: "Reward model", refl: "Restorer" };

/**
 * @typedef {object} Known what the server knows of
 * @property {Kind[]} kinds
 * @property {{value: string, words: string}[]} devices
 * @property {{id: number, kind: string, state: string}[]} live runs to wait for
 * @property {Asked | null} from the form of the run that the address names
 * @property {string} fault what is wrong with the address
 */

/** @param {HTMLElement} root the element to fill */
export async function mount(root) {
  let known = await load();
  if (!known) return root.replaceChildren(alert("The forms could not be loaded. Reload the page."));
  const kindSelect = labelled("Kind of run", make("select", { on: { change: () => fill({ kind: kindSelect.control.value }) } }, ...groupKinds(known.kinds)));
  const about = note("");
  const body = make("div", { className: "tr-body" });
  const place = makePlace(() => changed());
  const plan = makePlan(FORM_ID);
  const round = make("section");
  /** @type {Kind} */
  let kind;
  /** @type {ReturnType<typeof makeForm>} */
  let form;
  let written = ""; // the page's own words in the address
  let checks = 0;
  let timer = 0;

  const on = { submit, keydown: startNothing };
  root.replaceChildren(
    make(
      "div",
      { className: "tr-frame" },
      make("form", { className: "tr-form", id: FORM_ID, noValidate: true, on }, kindSelect.element, about, body),
      make("aside", { className: "tr-side", "aria-label": "What will run" }, ...place.elements, ...plan.elements),
    ),
    round,
  );
  fill(readAddress());
  mountRound(round);
  window.addEventListener("hashchange", onHash);

  async function onHash() {
    if (!root.isConnected) return window.removeEventListener("hashchange", onHash);
    if (location.hash.slice(1) === written) return;
    known = (await load()) ?? known;
    fill(readAddress());
  }

  /** @returns {Asked} */
  function readAddress() {
    const params = readHash();
    return (params.has("from") && known.from) || readAsked(params, known.kinds);
  }

  /**
   * Show the form of a kind with these values; what is left out is the preset's.
   * @param {Asked} asked
   */
  function fill(asked) {
    kind = known.kinds.find((one) => one.kind === asked.kind) ?? known.kinds.find((one) => one.kind === "reward train");
    kindSelect.control.value = kind.kind;
    about.textContent = kind.about;
    form = makeForm(kind, asked, () => changed());
    body.replaceChildren(...form.elements);
    place.fill(kind, known, asked);
    plan.say(...(known.fault ? [alert(known.fault)] : []));
    known.fault = "";
    changed(0);
  }

  const collect = () => ({ ...form.collect(), ...place.collect() });

  function changed(wait = CHECK_AFTER_MS) {
    clearTimeout(timer);
    timer = setTimeout(check, wait);
  }

  async function check() {
    const asked = collect();
    written = writeAsked(asked, { preset: kind.preset, device: usualDevice(kind, known) }).toString();
    history.replaceState(history.state, "", `${location.pathname}${location.search}#${written}`);
    const number = ++checks;
    const answer = await post("/api/train/check", asked).catch(({ errors }) => ({ errors }));
    if (number !== checks) return; // a later one is on its way
    if (answer.defaults) form.setDefaults(answer.defaults);
    plan.show(answer);
    showErrors(answer.errors ?? {});
  }

  /** @param {Record<string, string>} errors by place; '' for the whole form */
  function showErrors(errors) {
    form.setErrors(errors);
    place.setErrors(errors);
    plan.setErrors(errors, form.labelOf);
  }

  /** @param {SubmitEvent} event */
  async function submit(event) {
    event.preventDefault();
    if (plan.start.disabled) return;
    clearTimeout(timer);
    plan.start.disabled = true; // pressed twice, it starts once
    plan.say();
    try {
      plan.sayStarted(await post("/api/train/start", collect()));
    } catch (error) {
      showErrors(error.status === 0 ? { "": "The server cannot be reached; see on the Runs page whether it started." } : error.errors);
    }
  }
}

/** @param {KeyboardEvent} event Enter, which ends a value and starts nothing */
function startNothing(event) {
  if (event.key === "Enter" && event.target instanceof HTMLInputElement) event.preventDefault();
}

const readHash = () => new URLSearchParams(location.hash.slice(1));

/** @returns {Promise<Known | null>} null where the server does not answer */
async function load() {
  const from = readHash().get("from");
  try {
    return { ...(await ask(`/api/train/kinds${from ? `?from=${encodeURIComponent(from)}` : ""}`)), fault: "" };
  } catch (error) {
    if (error.status !== 404) return null;
    const known = await ask("/api/train/kinds").catch(() => /** @type {null} */ (null));
    return known && { ...known, fault: error.message };
  }
}

/** @param {Kind[]} kinds */
function groupKinds(kinds) {
  return Object.entries(GROUPS).map(([module, label]) => {
    const own = kinds.filter(({ kind }) => kind.startsWith(`${module} `));
    return make("optgroup", { label }, ...own.map(({ kind, title }) => new Option(title, kind)));
  });
}
