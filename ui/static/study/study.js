// @ts-check
/**
 * Lead a participant of a study from the information to the task, and from it to the end. The server knows how far
 * they are; this page shows that, also after a reload, in a second tab, and when something else moved them on.
 */

import { $, make } from "../common/dom.js";
import { Refusal, at, post } from "../common/server.js";
import { setUpTheme } from "../common/theme_button.js";
import { showEnding } from "./ending.js";
import { advise, compare, drawStrip, look } from "./screen.js";
import { setUpTraining } from "./training.js";

/** @import { Ending } from "./ending.js" */
/** @import { Needs } from "./screen.js" */
/** @import { Training } from "./training.js" */

/**
 * @typedef {object} State
 * @property {string} title
 * @property {string} stage
 * @property {string[]} steps all stages of this study but the end
 * @property {string | null} outcome
 * @property {{html: string, consent: string}} information
 * @property {Needs & {strip_fields: number}} screen
 * @property {Training | null} training
 * @property {number} qualification gold pairs asked before the task
 * @property {{done: number, of: number}} answers
 * @property {Ending | null} ending
 */

const LOOK_AGAIN_MS = 30_000;
const SCREEN_MS = 500;
const SECTIONS = ["information", "screen", "training", "ready", "ending"];
/** @type {Record<string, string>} */
const STEPS = { information: "Information", screen: "Your screen", training: "Practice", qualification: "Questions", task: "The task" };
/** @type {State | null} */
let state = null;
let asked = ""; // the section that is shown
let refused = false; // whether the server found something lacking that this page does not see by itself

const training = setUpTraining(showTrouble, () => go(fetchState));
setUpTheme($("theme"));

/** @param {Error} error */
function showTrouble(error) {
  if (error instanceof Refusal && error.status === 401) location.reload(); // which says what to do
  $("trouble").textContent = error.message;
  $("trouble").hidden = false;
  $("trouble").scrollIntoView({ block: "nearest" });
}

/** How far the participant is. */
async function fetchState() {
  const response = await fetch(at("/api/study"), { cache: "no-store" }).catch(() => {
    throw new Refusal("The server cannot be reached. Reload the page to try again.", 0);
  });
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refusal(body.error ?? body.detail ?? `The server said ${response.status}.`, response.status);
  return /** @type {State} */ (body);
}

/**
 * Do a step, and show how far it led; where it could not be done, show how far the participant is.
 * @param {() => Promise<State>} step
 */
async function go(step) {
  $("trouble").hidden = true;
  try {
    show(await step());
  } catch (error) {
    if (error instanceof Refusal && error.status === 409) {
      const found = await fetchState().catch(() => /** @type {null} */ (null));
      if (found) show(found);
    }
    showTrouble(error);
  }
}

/** @param {State} next */
function show(next) {
  const first = state === null;
  state = next;
  document.title = `${state.title} · FaceReward`;
  $("title").textContent = state.title;
  const atWork = state.stage === "qualification" || state.stage === "task";
  const trained = state.stage === "training" && !state.training; // every pair of it is answered
  const section = atWork || trained ? "ready" : state.stage === "ended" ? "ending" : state.stage;
  const place = state.steps.indexOf(state.stage);
  $("step").textContent = place < 0 ? "" : `Step ${place + 1} of ${state.steps.length}: ${STEPS[state.stage]}`;
  for (const name of SECTIONS) $(name).hidden = name !== section;
  showBack(first);
  FILL[section](state);
  if (section !== asked) {
    scrollTo(0, 0);
    if (!first) $(section).querySelector("h1").focus(); // what a screen reader reads next
  }
  asked = section;
}

/** @param {boolean} first whether the page has just opened */
function showBack(first) {
  const moved = state.stage !== "information" && state.stage !== "ended" && state.stage !== state.steps[0];
  const { done, of } = state.answers;
  const where = state.stage === "task" ? `${done} of ${of} answers are given` : `you are at “${STEPS[state.stage]}”`;
  if (first) $("back").textContent = `Welcome back: ${where}.`;
  $("back").hidden = !(first && moved);
}

/** @type {Record<string, (state: State) => void>} */
const FILL = {
  information({ title, information }) {
    $("information-title").textContent = title;
    $("information-text").innerHTML = information.html; // written by the server from Markdown, without HTML of its own
    $("consent-text").textContent = information.consent;
  },
  screen({ screen }) {
    $("strip-part").hidden = !screen.strip_fields;
    $("fields-seen").required = screen.strip_fields > 0;
    if (screen.strip_fields) drawStrip($("grey-strip"), screen.strip_fields);
    showScreen();
  },
  training: (of) => training.show(of.training),
  ready({ stage, qualification, answers }) {
    const begun = answers.done > 0;
    $("ready-title").textContent = begun ? "Your place is kept" : "Ready to begin";
    const first = qualification === 1 ? "comes 1 pair that decides" : `come ${qualification} pairs that decide`;
    $("ready-words").textContent =
      qualification > 0 && stage !== "task"
        ? `First ${first} whether you go on to the task. Look closely, and choose the better restoration.`
        : `${answers.of - answers.done} answers are left. You can close the page and come back by the same link.`;
    $("go").textContent = begun ? "Go on" : "Begin";
  },
  ending: ({ ending }) => showEnding(ending),
};

/* ---- information and consent ---- */

$("consent").addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  go(() => post("/api/study/consent", { agreed: true }));
});
$("disagree").addEventListener("click", () => go(() => post("/api/study/consent", { agreed: false })));

/* ---- the screen ---- */

/** Show what is needed beside what there is now. */
function showScreen() {
  const seen = look();
  const facts = compare(state.screen, seen);
  const cells = (/** @type {string[]} */ texts) => texts.map((text) => make("td", {}, text));
  const head = make("tr", {}, ...["", "needed", "here", ""].map((text) => make("th", { scope: "col" }, text)));
  const rows = facts.map(({ what, needed, here, fits }) =>
    make("tr", { className: fits ? "" : "lacking" }, make("th", { scope: "row" }, what), ...cells([needed, here, fits ? "fits" : "too little"])),
  );
  const text = JSON.stringify(facts);
  if ($("screen-facts").dataset.shown !== text) $("screen-facts").replaceChildren(head, ...rows); // else it is read again
  $("screen-facts").dataset.shown = text;
  const advice = advise(state.screen, seen);
  $("screen-facts").hidden = !facts.length;
  $("screen-advice").textContent = advice;
  $("screen-advice").hidden = !advice;
  $("screen-cannot").hidden = !advice && !refused;
  $("screen-send").disabled = Boolean(advice);
}

/** @param {boolean} giveUp whether no better screen is at hand */
function sendScreen(giveUp) {
  const fields = state.screen.strip_fields && $("fields-seen").value !== "" ? Number($("fields-seen").value) : null;
  go(async () => {
    const next = await post("/api/study/screen", { ...look(), fields_seen: fields, give_up: giveUp });
    refused = next.faults.length > 0;
    if (refused && next.stage === "screen") showTrouble(new Error(next.faults.join(" ")));
    return next;
  });
}

$("screen-form").addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  sendScreen(false);
});
$("screen-cannot").addEventListener("click", () => sendScreen(true));
setInterval(() => state?.stage === "screen" && showScreen(), SCREEN_MS); // a changed zoom tells of itself nowhere

/* ---- to the task, and out of it ---- */

$("go").addEventListener("click", () =>
  go(async () => {
    const next = await post("/api/study/begin");
    if (next.stage !== "ended") location.assign(at("/"));
    return next;
  }),
);
const askWhetherSure = (/** @type {boolean} */ on) => {
  $("leave-sure").hidden = !on;
  $("ready-row").hidden = on;
  $(on ? "leave-not" : "leave").focus();
};
$("leave").addEventListener("click", () => askWhetherSure(true));
$("leave-not").addEventListener("click", () => askWhetherSure(false));
$("leave-now").addEventListener("click", () => go(() => post("/api/study/leave")));

/* ---- what happens elsewhere: another tab, the time limit, an admin ---- */

async function lookAgain() {
  if (document.hidden || !state || state.stage === "ended" || !$("training-said").hidden) return; // an explanation is read
  const next = await fetchState().catch(() => /** @type {null} */ (null));
  if (next && next.stage !== state.stage) show(next);
}
setInterval(lookAgain, LOOK_AGAIN_MS);
document.addEventListener("visibilitychange", lookAgain);
window.addEventListener("pageshow", (event) => event.persisted && lookAgain());

go(fetchState);
