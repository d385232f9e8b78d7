// @ts-check
/**
 * Run the labelling page. Four pairs or tasks are decoded ahead, so that the next one follows an answer within a frame,
 * while the answer is on its way. Keys are ignored from the answer until the next one is painted: nobody can judge what
 * they have not seen.
 */

import { $, button, make } from "../common/dom.js";
import { at, post } from "../common/server.js";
import { setUpMenu } from "../common/menu.js";
import { forget, keep, namesOf, recallJson } from "../common/storage.js";
import { setUpTheme } from "../common/theme_button.js";
import { setUpHelp } from "./help.js";
import { isNamed, makeKeys } from "./keys.js";
import { makeId, makeOutbox } from "./outbox.js";
import { WARNING, isAtWork, nameProgress, setUpStudy } from "./study.js";
import { makeFrames, makeTask, nameAsked, nameRanking, picturesOf } from "./task.js";
import { candidatesOf, makeViewer } from "./viewer.js";

/** @import { Answer, Judge, Sent, State } from "./outbox.js" */
/** @import { Study } from "./study.js" */
/** @import { Ranking } from "./task.js" */
/** @import { Entry, Overlay, Source, View } from "./viewer.js" */

/**
 * @typedef {object} Project what the people who judge are asked
 * @property {string} version
 * @property {string} title
 * @property {string} question
 * @property {string} guidelines_html
 * @property {string[]} reasons
 * @property {string[]} skip_reasons
 *
 * @typedef {{person: {id: string, name: string, role: string}, project: Project, guidelines_seen: boolean, study: Study | null}} Session
 * @typedef {{entry: Entry, event: Judge, offered: string[]}} Given an answer of this page, with the reasons offered
 * @typedef {{event: Sent, error: string, at: number, name: string | null}} SetAside
 * @typedef {{done: number, per_hour: number | null}} Pace
 * @typedef {{mine: Pace, all: (Pace & {wanted: number}) | null}} Progress what all have done is not told to a participant
 */

const AHEAD = 4;
const REMEMBERED = 30;
const LOOK_AGAIN_MS = 10_000;
const RENEW_MS = 60_000;
const SEND_WITHIN_MS = 50;
const TRY_AGAIN_MS = 500;
const MOST_HELD = 32; // the server reads no more tokens, nor a longer time, than these
const MOST_SECONDS = 86_400;
const SLOW_MS = 300; // the old pair stands no longer than this while the next one loads
const DOUBLE_CLICK_MS = 400;
const SIGN_OUT_MS = 5_000;
const READING = ["help-dialog", "history-dialog", "guidelines-dialog"]; // dialogs that hide the images while they are read

/** @type {Record<string, string>} */
const SIDES = { left: "left is better", right: "right is better", tie: "tie" };

const session = await fetchSession();
const keys = makeKeys();
const openHelp = setUpHelp(keys, () => tasksToo);
/** @type {Entry[]} */
const ring = []; // the next pairs and tasks, decoded or being decoded, in order
/** @type {Given[]} */
const past = []; // own answers of this page, newest last
const wantedBack = new Set(); // undo events whose pair is to be shown when the server names it
/** @type {Entry | null} */
let current = null;
let locked = true;
/** @type {Given | null} */
let last = null; // the answer that reasons may still be added to
/** @type {Progress | null} */
let progress = null;
let since = 0; // judgments since `progress` was asked for
let done = false;
let busy = { others: 0, own: 0, damaged: 0 }; // pairs that others, or this person's other pages, are looking at
let ownPages = 0; // other pages that this person has open
let tasksToo = false; // whether tasks are shown, and digits choose candidates
let kept = true; // whether this browser keeps what waits
let signsOut = false; // asked for while answers wait

const setAsidePrefix = `facereward:set-aside:${session.person.id}:`; // one name for each, since other pages add theirs
const setAside = readSetAside(); // events that the server did not take, each with its error

const frames = makeFrames();
const viewer = makeViewer($("stage"), [$("left"), $("right")], $("grid"), frames, (text) => ($("readout").textContent = text), noteMode);
const task = makeTask(frames, {
  onAnswer: (ranking, time) => answer("ranked", time, null, ranking),
  isReady: () => isReady(),
  isStray: (event) => isSecondClick(event) || (event.detail > 0 && viewer.dragged()),
  onRemark: notify,
});
const outbox = makeOutbox(session.person.id, { need, onAnswer, onState: showState, onRefused: setAsideEvent });

/** @returns {Promise<Session>} */
async function fetchSession() {
  for (;;) {
    const response = await fetch(at("/api/session")).catch(() => /** @type {null} */ (null));
    if (response?.status === 401) {
      location.assign(at("/sign-in"));
      return new Promise(() => {}); // nothing more happens on this page
    }
    const found = response?.ok ? await response.json().catch(() => /** @type {null} */ (null)) : null;
    if (found?.person) return found;
    $("stage").dataset.state = "loading";
    $("notice").textContent = "The server does not answer. This page keeps trying.";
    $("notice").hidden = false;
    await new Promise((resolve) => setTimeout(resolve, 2 * TRY_AGAIN_MS));
  }
}

/** @param {string} mode */
function noteMode(mode) {
  current?.modes.add(mode);
}

/* ---- pairs ahead ---- */

function need() {
  const held = [current, ...ring].filter(Boolean);
  return {
    want: Math.max(0, AHEAD + 1 - held.length),
    holding: held.slice(0, MOST_HELD).map((entry) => entry.view.showing),
    question: session.project.version,
  };
}

/** @param {Answer} answer */
function onAnswer(answer) {
  if (answer.study && !takeStudy(answer.study)) return;
  if (answer.project) takeProject(answer.project);
  tasksToo ||= [...answer.pairs, ...answer.results.map(({ pair }) => pair)].some((view) => view?.images);
  for (const result of answer.results) {
    if (wantedBack.delete(result.id) && result.pair) showBefore(makeEntry(result.pair));
  }
  leaveToOtherPage(answer.gone ?? []);
  const known = new Set([current, ...ring].filter(Boolean).map((entry) => entry.view.showing));
  for (const view of answer.pairs) if (!known.has(view.showing)) ring.push(makeEntry(view));
  done = answer.done;
  busy = { others: answer.with_others, own: answer.in_own_pages, damaged: answer.damaged };
  if (!ownPages && answer.own_pages) {
    alarm("You have this page open elsewhere too, in another tab or window or on another device. Each shows other pairs.");
  }
  ownPages = answer.own_pages;
  showStrip();
  if (!current) showNext();
}

/**
 * Show how far the participant of a study is; false where that is no longer to be seen here.
 * @param {Study} study
 */
function takeStudy(study) {
  if (study.warned && !session.study?.warned) alarm(WARNING);
  session.study = study;
  showProgress();
  if (isAtWork(study)) return true;
  locked = true;
  location.replace(at("/study"));
  return false;
}

/**
 * Drop the pairs that another page of this person took over while this one was silent.
 * @param {string[]} showings
 */
function leaveToOtherPage(showings) {
  const gone = new Set(showings);
  ring.splice(0, ring.length, ...ring.filter((entry) => !gone.has(entry.view.showing)));
  if (!gone.has(current?.view.showing)) return;
  notify(`That ${noun()} is open in another of your pages now; here is the next one.`);
  showNext();
}

/** What is shown, in a word. */
const noun = () => (tasksToo ? "task" : "pair");

/**
 * A pair or task with its images loading and decoding; `ready` settles when all candidates can be painted at once.
 * @param {View} view
 * @returns {Entry}
 */
function makeEntry(view) {
  const load = (/** @type {Source} */ source, /** @type {string} */ alt) => {
    const image = new Image();
    image.alt = alt;
    image.draggable = false;
    image.decoding = "sync";
    image.src = source.url;
    return image;
  };
  const shown = candidatesOf(view);
  const names = view.images ? shown.map((_, place) => `Candidate ${place + 1}`) : ["Left candidate", "Right candidate"];
  const inEach = (/** @type {Source | null} */ source, /** @type {string} */ alt) => source && shown.map(() => load(source, alt));
  const images = {
    candidates: shown.map((source, place) => load(source, names[place])),
    lq: inEach(view.lq, "Low-quality input"),
    hq: truthShown() ? inEach(view.hq, "Ground truth") : null,
  };
  const decoded = [...images.candidates, ...(images.lq ?? []), ...(images.hq ?? [])].map((image) => image.decode());
  const ready = Promise.all(decoded);
  ready.catch(() => {}); // `show` handles it when the pair's turn comes
  return { view, images, modes: new Set(), visibleMs: 0, ready };
}

/** @param {number | null} keyTime */
async function showNext(keyTime = null) {
  current = ring.shift() ?? null;
  if (!current) return showEmpty();
  await show(current, keyTime);
}

/**
 * @param {Entry} entry
 * @param {number | null} keyTime
 */
async function show(entry, keyTime = null) {
  current = entry;
  locked = true;
  $("stage").dataset.state = "loading";
  const slow = setTimeout(() => current === entry && locked && sayLoading(), SLOW_MS);
  try {
    await entry.ready;
  } catch {
    if (current !== entry) return;
    const gone = await findGone(entry);
    if (current !== entry) return;
    if (gone) alarm(gone);
    else if (!entry.triedAgain) return tryAgain(entry, keyTime);
    else alarm(`An image of a ${noun()} could not be loaded. The ${noun()} is left out and shown again later.`);
    return showNext();
  }
  clearTimeout(slow);
  if (current !== entry) return;
  $("notice").hidden = true;
  viewer.show(entry);
  task.show(entry.view);
  showAsked(entry.view);
  entry.modes = new Set(truthShown() && entry.view.hq ? [viewer.mode(), "truth"] : [viewer.mode()]);
  showReferences(entry);
  const paintedTime = await painted();
  entry.paintedTime = paintedTime;
  entry.visibleSince = looking() ? performance.now() : null;
  locked = false;
  $("stage").dataset.state = "shown";
  document.dispatchEvent(
    new CustomEvent("facereward:painted", { detail: { showing: entry.view.showing, keyTime, paintedTime } }),
  );
}

/**
 * Say what is asked of this pair or task, at the same place for both; a project that shows pairs alone asks for nothing
 * else than its question.
 * @param {View} view
 */
function showAsked(view) {
  $("asked").hidden = !tasksToo;
  if (!tasksToo) return;
  $("asked").textContent = nameAsked(view);
  $("asked").dataset.asked = view.asked ?? "pair";
}

/** Say that the next pair is loading: someone who still sees the old one would answer again, for the next pair. */
function sayLoading() {
  $("notice").textContent = `Loading the next ${noun()} …`;
  $("notice").hidden = false;
}

/**
 * Ask why an image cannot be shown: the server's reason where it is lost for good, else an empty text.
 * @param {Entry} entry
 */
async function findGone({ view }) {
  for (const image of [...candidatesOf(view), view.lq, view.hq]) {
    const response = image && (await fetch(image.url).catch(() => /** @type {null} */ (null)));
    if (response?.status === 410) return (await response.json().catch(() => ({}))).detail ?? "An image is damaged.";
  }
  return "";
}

/**
 * Load the images again: if they were fetched ahead while the network was away, they may load now.
 * @param {Entry} entry
 * @param {number | null} keyTime
 */
async function tryAgain(entry, keyTime) {
  await new Promise((resolve) => setTimeout(resolve, TRY_AGAIN_MS));
  if (current === entry) await show({ ...makeEntry(entry.view), triedAgain: true }, keyTime);
}

/** Wait until what was put into the page is painted: one frame, and what the browser does after it. */
function painted() {
  return new Promise((resolve) => {
    requestAnimationFrame(() => {
      const channel = new MessageChannel();
      channel.port1.onmessage = () => resolve(performance.now());
      channel.port2.postMessage(null);
    });
  });
}

function showEmpty() {
  locked = true;
  viewer.clear();
  $("lq-figure").hidden = $("hq-figure").hidden = true;
  $("stage").dataset.state = done ? "done" : "loading";
  $("notice").hidden = false;
  $("notice").textContent = !done
    ? `Loading the next ${noun()} …`
    : progress?.all?.wanted === 0
      ? `There is nothing to judge yet. ${session.person.role === "admin" ? "Import photos on the Data page, restore them and make pairs. " : ""}This page refreshes itself.`
      : `All done for now. ${describeBusy()} This page refreshes itself.`;
}

/** Say why nothing is shown although some pairs still need this person's judgment. */
function describeBusy() {
  const pairs = (/** @type {number} */ count) => (count === 1 ? `The last ${noun()} is` : `The last ${count} ${noun()}s are`);
  if (busy.damaged) return `Some ${noun()}s are left out, because their images are damaged on the server. Please tell an admin.`;
  if (busy.own) return `${pairs(busy.own)} open in another tab, window or device of yours.`;
  if (busy.others) return `${pairs(busy.others)} with others just now, and come to you if they leave them.`;
  return `No ${noun()} waits for your judgment.`;
}

/** @param {Entry} entry */
function showReferences(entry) {
  const { lq, hq } = entry.view;
  $("lq-figure").hidden = !lq;
  if (lq) $("lq").replaceChildren(entry.images.lq[0].cloneNode());
  $("hq-figure").hidden = !hq;
  $("hq").hidden = !truthShown();
  if (hq && truthShown()) {
    entry.images.hq ??= entry.images.candidates.map(() => Object.assign(new Image(), { src: hq.url, alt: "Ground truth" }));
    $("hq").replaceChildren(entry.images.hq[0].cloneNode());
  }
}

const truthShown = () => $("toggle-truth").getAttribute("aria-pressed") === "true";

function toggleTruth() {
  $("toggle-truth").setAttribute("aria-pressed", String(!truthShown()));
  if (current) showReferences(current);
  if (truthShown() && current?.view.hq) noteMode("truth");
}

/* ---- answers ---- */

/** @param {Entry} entry */
function visibleSeconds(entry) {
  const running = entry.visibleSince == null ? 0 : performance.now() - entry.visibleSince;
  return Math.min(MOST_SECONDS, Math.round(entry.visibleMs + running) / 1000);
}

/** Whether an answer counts now. */
function isReady() {
  if (locked || !current) return false;
  // With the two swapped, "left" would mean the image that now stands right.
  if (viewer.held()) notify("Let go of the held view, then answer.");
  return !viewer.held();
}

/**
 * Whether a click is the second of a double click, whose first one was meant for what was shown before.
 * @param {MouseEvent} event
 */
const isSecondClick = (event) => event.detail > 1 && performance.now() - current?.paintedTime < DOUBLE_CLICK_MS;

/**
 * @param {string} choice left, right or tie of a pair, ranked of a task, skip of either
 * @param {number | null} keyTime
 * @param {string | null} skipReason
 * @param {Ranking | null} ranking
 */
function answer(choice, keyTime = null, skipReason = null, ranking = null) {
  if (locked || !current) return;
  if (choice !== "skip") {
    // A key of the other kind answers nothing: pairs and tasks follow each other.
    if ((ranking !== null) !== Boolean(current.view.images) || !isReady()) return;
  }
  locked = true;
  const entry = current;
  /** @type {Judge} */
  const event = {
    type: "judge",
    id: makeId(),
    showing: entry.view.showing,
    choice,
    ...ranking,
    skip_reason: skipReason,
    reasons: [],
    seconds: visibleSeconds(entry),
    view_mode: [...entry.modes].join("+"),
    question: session.project.version,
  };
  outbox.push(event);
  past.push({ entry, event, offered: session.project.reasons });
  if (past.length > REMEMBERED) past.shift();
  last = choice === "skip" ? null : past.at(-1);
  since += 1;
  const shown = showNext(keyTime);
  // Sending waits for the paint, but not for a next pair that is still on its way.
  Promise.race([shown, new Promise((resolve) => setTimeout(resolve, SEND_WITHIN_MS))]).then(outbox.flush);
  shown.then(() => {
    showReasons();
    showProgress();
  });
}

/** Take back what was said of this task; else the newest answer, and show its pair again, at once where it is here. */
async function undo() {
  if (locked && current) return;
  if (current && task.takeBack()) return;
  const newest = past.pop();
  last = null;
  showReasons();
  if (newest) {
    outbox.push({ type: "undo", id: makeId(), judgment: newest.event.id });
    since -= 1;
    newest.entry.visibleMs = 0;
    await showBefore(newest.entry);
    showProgress();
    outbox.flush();
    return;
  }
  const entries = await fetchHistory(1);
  if (entries?.length) undoFromHistory(entries[0].judgment);
  else if (entries) notify("There is nothing to undo.");
}

/** @param {string} judgment */
function undoFromHistory(judgment) {
  const id = makeId();
  wantedBack.add(id);
  outbox.push({ type: "undo", id, judgment });
  since -= 1;
  outbox.flush();
}

/** @param {Entry} entry */
async function showBefore(entry) {
  if (current) {
    current.visibleMs = 0;
    ring.unshift(current);
  }
  await show(entry);
}

/**
 * Toggle a reason: send the answer again with a new id; it replaces the one before.
 * @param {string} reason
 */
function toggleReason(reason) {
  if (!last) return;
  const { event } = last;
  const reasons = event.reasons.includes(reason) ? event.reasons.filter((r) => r !== reason) : [...event.reasons, reason];
  last.event = { ...event, id: makeId(), reasons, replaces: event.id };
  outbox.push(last.event);
  outbox.flush();
  showReasons();
}

/**
 * An answer in a few words.
 * @param {Given} given
 */
function nameAnswer({ event, entry }) {
  const { tiers, worst } = event;
  return tiers ? nameRanking({ tiers, worst }, entry.view.images.length) : event.choice;
}

function showReasons() {
  $("reasons").replaceChildren();
  if (!last || last.offered.length === 0) return;
  const word = nameAnswer(last);
  const chips = last.offered.map((reason, place) => {
    const chip = button(reason, () => toggleReason(reason), `${tasksToo ? "⇧" : ""}${place + 1}`);
    chip.title = reason;
    chip.setAttribute("aria-pressed", String(last.event.reasons.includes(reason)));
    return chip;
  });
  $("reasons").replaceChildren(make("span", {}, `Last answer: ${word}, because of …`), ...chips);
}

/* ---- what is asked ---- */

/** @type {Record<string, string>} parts of the project in words */
const PARTS = {
  title: "the title",
  question: "the question",
  guidelines_html: "the guidelines",
  reasons: "the reasons",
  skip_reasons: "the reasons to skip",
};

function showProject() {
  const { project } = session;
  document.title = `${project.title} · FaceReward`;
  $("title").textContent = project.title;
  $("question").textContent = $("guidelines-question").textContent = project.question;
  for (const place of document.querySelectorAll(".guidelines")) place.innerHTML = project.guidelines_html;
  showSkipReasons();
}

/**
 * Show that an admin changed the question. Earlier answers keep their version; none is taken until this one is painted.
 * @param {Project} project
 */
async function takeProject(project) {
  const same = (/** @type {keyof Project} */ part) => JSON.stringify(session.project[part]) === JSON.stringify(project[part]);
  const changed = /** @type {(keyof Project)[]} */ (Object.keys(PARTS)).filter((part) => !same(part));
  session.project = project;
  showProject();
  const words = changed.map((part) => PARTS[part]).join(", ");
  $("changed").firstElementChild.textContent = `An admin has changed ${words}. From now on you answer to the new version.`;
  $("changed").hidden = false;
  if (locked) return; // the next pair and this are painted together
  const entry = current;
  locked = true;
  await painted();
  if (current === entry) locked = false;
}

$("dismiss-changed").addEventListener("click", () => ($("changed").hidden = true));
$("read-changed").addEventListener("click", () => {
  $("changed").hidden = true;
  $("guidelines-go").textContent = "Go on labelling";
  $("guidelines-dialog").showModal();
  $("guidelines-dialog").addEventListener("close", closeGuidelines, { once: true });
});

/* ---- skipping ---- */

function showSkipReasons() {
  const { skip_reasons: reasons } = session.project;
  $("skip-reasons").replaceChildren(
    ...reasons.map((reason, place) => button(reason, () => skipBecause(reason), String(place + 1))),
  );
}

function openSkip() {
  if (locked || !current) return;
  showSkipReasons();
  $("skip-text").value = "";
  $("skip-dialog").showModal();
  ($("skip-reasons").firstChild ?? $("skip-text")).focus();
}

/** @param {string} reason */
function skipBecause(reason) {
  if (!reason.trim()) {
    $("skip-text").focus();
    return;
  }
  $("skip-dialog").close();
  // Cut off in the middle of a character, as by the field's limit, it could not be stored.
  answer("skip", null, reason.trim().toWellFormed?.() ?? reason.trim());
}

$("skip-send").addEventListener("click", () => skipBecause($("skip-text").value));
$("skip-dialog").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
  if (event.target === $("skip-text")) {
    if (event.key === "Enter" && !event.isComposing) {
      event.preventDefault();
      skipBecause($("skip-text").value);
    }
    return;
  }
  const reason = session.project.skip_reasons[keys.placeOf(event)];
  if (reason) skipBecause(reason);
});

/* ---- keys and buttons ---- */

/** @type {Record<string, (time: number | null) => void>} */
const PRESSED = {
  left: (time) => answer("left", time),
  right: (time) => answer("right", time),
  tie: (time) => (current?.view.images ? task.tie(time) : answer("tie", time)),
  done: (time) => task.done(time),
  skip: openSkip,
  undo,
  truth: toggleTruth,
  pixels: () => viewer.toggleScale(1),
  zoomIn: () => viewer.zoomIn(),
  zoomOut: () => viewer.zoomOut(),
  fit: () => viewer.fit(),
  history: openHistory,
  help: openHelp,
};
/** @type {Record<string, Overlay>} */
const HELD = { input: "lq", flicker: "flicker" };

/** @type {string | number | null} */
let heldBy = null; // what began the held view: a key's place, or a pointer

/**
 * @param {Overlay} what
 * @param {string | number} by
 */
function hold(what, by) {
  heldBy = by;
  viewer.hold(what, task.reference());
}

function letGo(by = heldBy) {
  if (by !== heldBy) return;
  heldBy = null;
  viewer.hold(null);
}

/** @param {KeyboardEvent} event */
const placeOfKey = (event) => event.code || event.key;

document.addEventListener("keydown", (event) => {
  // Held down, Enter would press the button that has the focus again and again.
  const target = event.target instanceof Element ? event.target : null;
  if (event.repeat && event.key === "Enter" && target?.closest("button, a")) event.preventDefault();
  const typing = target?.closest("input:not([type=checkbox]), textarea, select, [contenteditable]");
  const withOthers = event.ctrlKey || event.altKey || event.metaKey || (event.shiftKey && isNamed(event));
  if (event.repeat || withOthers || typing || document.querySelector("dialog[open]")) return;
  // Where tasks are shown, digits choose candidates; with Shift they give reasons, also between two pairs.
  const digit = tasksToo ? keys.digitOf(event) : null;
  const candidate = digit !== null && !event.shiftKey && Boolean(current?.view.images?.[digit]);
  const reason = last?.offered[tasksToo ? (event.shiftKey ? digit : null) : keys.placeOf(event)];
  const action = candidate || (tasksToo && reason) ? null : keys.actionOf(event);
  // A focused button is pressed by Enter, and only an order is ended by it.
  if (action === "done" && (target?.closest("button, a, summary") || current?.view.asked !== "order")) return;
  if (candidate) task.pick(digit, event.timeStamp);
  else if (action && HELD[action]) hold(HELD[action], placeOfKey(event));
  else if (action) PRESSED[action](event.timeStamp);
  else if (reason) toggleReason(reason);
  else return;
  event.preventDefault();
});
document.addEventListener("keyup", (event) => {
  letGo(placeOfKey(event));
  if (event.key === "Meta") letGo(); // macOS tells of no other key's end while it is down
});
window.addEventListener("blur", () => letGo());
window.addEventListener("pagehide", () => letGo());

for (const control of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-action]"))) {
  control.addEventListener("click", (event) => {
    if (!(isSecondClick(event) && control.classList.contains("choice"))) PRESSED[control.dataset.action](null);
  });
}
holdWhilePressed(document.querySelector("[data-hold=flicker]"), "flicker");
holdWhilePressed($("lq"), "lq");
holdWhilePressed($("hq"), "hq");
$("toggle-truth").addEventListener("click", toggleTruth);
$("open-history").addEventListener("click", openHistory);

/**
 * @param {HTMLElement} control
 * @param {Overlay} what
 */
function holdWhilePressed(control, what) {
  control.addEventListener("pointerdown", (event) => {
    control.setPointerCapture(event.pointerId);
    hold(what, event.pointerId);
  });
  control.addEventListener("keydown", (event) => {
    if ((event.key === "Enter" || event.key === " ") && !event.repeat) hold(what, placeOfKey(event));
  });
  for (const end of /** @type {const} */ (["pointerup", "pointercancel"])) control.addEventListener(end, (event) => letGo(event.pointerId));
  control.addEventListener("blur", () => letGo());
  control.addEventListener("contextmenu", (event) => event.preventDefault());
}

document.addEventListener("visibilitychange", () => {
  keepTime();
  if (document.hidden) letGo();
  if (current && !document.hidden) outbox.renew();
});
for (const dialog of READING) {
  for (const change of ["toggle", "close"]) $(dialog).addEventListener(change, keepTime);
}

/** Whether the pair is in view: the page is, and nothing to read lies over it. */
function looking() {
  return !document.hidden && !READING.some((dialog) => $(dialog).open);
}

/** Count the time until now, and go on counting only while the pair is in view. */
function keepTime() {
  if (!current || locked) return;
  const now = performance.now();
  if (current.visibleSince != null) current.visibleMs += now - current.visibleSince;
  current.visibleSince = looking() ? now : null;
}

/* ---- own answers so far ---- */

/**
 * @param {number} limit
 * @returns {Promise<any[] | null>}
 */
async function fetchHistory(limit) {
  try {
    const [here, response] = await Promise.all([fetch(at("/api/session")), fetch(at(`/api/history?limit=${limit}`))]);
    const { person } = await here.json();
    // Somebody else may have signed in since, in another tab: theirs are not to be shown, nor taken back.
    if (person?.id === session.person.id && response.ok) return await response.json();
  } catch {
    // the server is away
  }
  notify("Your last answers cannot be loaded now.");
  return null;
}

/**
 * The time of day, with its date where that is another than today's.
 * @param {Date} moment
 */
function nameTime(moment) {
  const today = moment.toDateString() === new Date().toDateString();
  return today ? moment.toLocaleTimeString() : moment.toLocaleString();
}

async function openHistory() {
  const entries = await fetchHistory(30);
  if (!entries) return;
  $("history").replaceChildren(
    ...entries.map((entry) => {
      const item = make("li");
      if (entry.images) item.append(picturesOf(entry));
      for (const side of entry.images ? [] : ["left", "right"]) {
        const image = new Image();
        Object.assign(image, { src: entry[side].url, loading: "lazy", alt: `${side} candidate` });
        image.classList.toggle("chosen", entry.choice === side);
        item.append(image);
      }
      const given = entry.choice === "ranked" ? nameRanking(entry, entry.images.length) : entry.choice;
      const text = entry.choice === "skip" ? `skipped: ${entry.skip_reason}` : given;
      item.append(make("span", {}, [text, ...entry.reasons].join(", ")));
      if (entry.asked) item.append(make("span", {}, `asked: ${entry.asked}`));
      item.append(make("time", {}, nameTime(new Date(entry.created_at))));
      item.append(
        button("Undo", () => {
          $("history-dialog").close();
          const place = past.findIndex(({ event }) => event.id === entry.judgment);
          if (place >= 0) past.splice(place, 1);
          if (last?.event.id === entry.judgment) last = null;
          showReasons();
          undoFromHistory(entry.judgment);
        }),
      );
      return item;
    }),
  );
  if (!entries.length) $("history").replaceChildren(make("li", {}, "None yet."));
  $("history-dialog").showModal();
}

/* ---- state of saving and progress ---- */

/** @param {State} state */
function showState(state) {
  kept = state.kept;
  if (state.name === "saved") signsOut = false;
  const answers = `${state.waiting} ${state.waiting === 1 ? "answer" : "answers"}`;
  const where = kept ? "kept here" : "in this page only";
  $("saved").dataset.state = state.name;
  const text = {
    saved: "saved",
    saving: "saving …",
    retrying: `not saved yet: ${answers} ${where}, trying again`,
    "too-fast": `too fast: ${answers} ${where}, sent within ${state.seconds} s`,
    "signed-out": `signed out, or signed in under another name: ${answers} ${where}. `,
  }[state.name];
  $("saved").replaceChildren(text);
  showStrip();
  if (state.name !== "signed-out") return;
  const link = make("a", { href: at("/sign-in") }, "Sign in again");
  if (!kept) link.target = "_blank"; // leaving this page would lose them
  $("saved").append(link);
}

/** Show below the question what is true as long as it stands there. */
function showStrip() {
  const lines = [];
  if (!kept) lines.push("This browser keeps no answers (its storage is full or blocked). They are sent immediately, but lost if this page closes before it says “saved”.");
  if (setAside.length) lines.push(`${setAside.length === 1 ? "1 answer was" : `${setAside.length} answers were`} not stored.`);
  if (setAside.some(({ name }) => !name)) lines.push("Try again before this page closes: this browser does not keep it.");
  if (session.study?.warned) lines.push(WARNING);
  if (ownPages) lines.push("Also open in another tab, window or device of yours.");
  $("strip").hidden = !lines.length;
  $("strip").textContent = lines.join(" ");
}

/**
 * Show what the person must know until they dismiss it.
 * @param {string} text
 */
function alarm(text) {
  $("alert-text").textContent = text;
  $("alert").hidden = false;
}

/* ---- answers that the server did not take ---- */

function readSetAside() {
  /** @type {SetAside[]} */
  const stored = namesOf(setAsidePrefix).map((name) => ({ ...recallJson(name), name }));
  return stored.filter((one) => typeof one.error === "string").sort((one, other) => one.at - other.at);
}

/**
 * Keep and show an event that the server will never accept as it is; later events are sent as usual.
 * @param {Sent} event
 * @param {string} error
 */
function setAsideEvent(event, error) {
  const one = { event, error, at: Date.now() };
  const name = setAsidePrefix + (typeof event?.id === "string" ? event.id : makeId());
  setAside.push({ ...one, name: keep(name, JSON.stringify(one)) ? name : null });
  showSetAside();
  if (event?.type !== "judge") return;
  if (!event.replaces) since -= 1;
  const place = past.findIndex((one) => one.event.id === event.id);
  if (place >= 0) past.splice(place, 1);
  if (last?.event.id !== event.id) return;
  last = null;
  showReasons();
}

function showSetAside() {
  $("set-aside").replaceChildren(
    ...setAside.map(({ event, error, at }) => {
      const words = event?.type === "undo" ? "undo" : (SIDES[event?.choice] ?? "an answer");
      const reason = event?.type === "judge" && typeof event.skip_reason === "string" ? `skip, ${event.skip_reason.slice(0, 100)}` : words;
      return make("li", {}, `Not stored: ${error} (${reason}, ${new Date(at).toLocaleTimeString()})`);
    }),
  );
  $("try-again").hidden = !setAside.length;
  if (setAside.length) $("alert").hidden = false;
  showStrip();
}

function clearSetAside() {
  const events = setAside.map((one) => one.event);
  for (const { name } of setAside.splice(0)) if (name) forget(name);
  $("alert").hidden = true;
  $("alert-text").textContent = "";
  showSetAside();
  return events;
}

window.addEventListener("beforeunload", (event) => {
  if (setAside.some(({ name }) => !name)) event.preventDefault(); // the browser asks whether to lose them
});
$("dismiss").addEventListener("click", clearSetAside);
$("try-again").addEventListener("click", () => {
  clearSetAside().forEach(outbox.push);
  outbox.flush();
});

/**
 * Show a remark, which the next answer may remove.
 * @param {string} text
 */
function notify(text) {
  $("reasons").replaceChildren(make("span", {}, text));
}

async function fetchProgress() {
  const response = await fetch(at("/api/progress")).catch(() => /** @type {null} */ (null));
  if (!response?.ok) return;
  progress = await response.json();
  since = 0;
  showProgress();
  if ($("stage").dataset.state === "done") showEmpty();
}

function showProgress() {
  if (session.study) $("progress").textContent = nameProgress(session.study);
  if (!progress?.all) return;
  const { mine, all } = progress;
  const left = Math.max(0, all.wanted - all.done - since);
  const pace = (/** @type {Pace} */ { per_hour: rate }) => (rate ? `, ${rate} per hour` : "");
  const own = make("span", {}, `you: ${mine.done + since}${pace(mine)}`);
  const everybody = make("span", { className: "wide" }, ` · all: ${all.done + since} of ${all.wanted}${pace(all)}`);
  $("progress").replaceChildren(own, everybody, ` · ${left} left`);
}

/* ---- start ---- */

function start() {
  const { person } = session;
  showProject();
  if (session.study) setUpStudy();
  $("sign-out").textContent = `Sign out ${person.name}`;
  $("sign-out").form.addEventListener("submit", signOut);
  setUpTheme($("theme"));
  if ($("fr-pages")) setUpMenu($("fr-pages")); // an admin's page alone has it
  showState(outbox.state());
  showSetAside();
  showEmpty();
  if (!session.guidelines_seen) {
    if (!session.study) $("first-time").textContent = `You begin here as “${person.name}”. If you judged here under another name before, close this, sign out, and sign in with that name.`;
    $("guidelines-dialog").showModal();
    $("guidelines-dialog").addEventListener("close", closeGuidelines, { once: true });
  }
  outbox.flush();
  fetchProgress();
  setInterval(() => !document.hidden && fetchProgress(), 30_000);
  setInterval(() => current && !document.hidden && outbox.renew(), RENEW_MS);
  setInterval(() => !current && outbox.renew(), LOOK_AGAIN_MS);
}

/**
 * Sign out after the waiting answers are sent, which nobody may do later; if they cannot be, say so first.
 * @param {SubmitEvent} event
 */
async function signOut(event) {
  if (signsOut || !outbox.state().waiting) return outbox.leave();
  event.preventDefault();
  signsOut = true;
  outbox.flush();
  const until = performance.now() + SIGN_OUT_MS;
  while (outbox.state().waiting && performance.now() < until) await new Promise((resolve) => setTimeout(resolve, 50));
  const { waiting } = outbox.state();
  if (!waiting) return $("sign-out-form").requestSubmit();
  const answers = waiting === 1 ? "1 answer is" : `${waiting} answers are`;
  const fate = kept ? `kept in this browser until “${session.person.name}” signs in here again` : "lost";
  alarm(`${answers} not saved yet, and ${fate}. To sign out all the same, press it once more.`);
}

function closeGuidelines() {
  post("/api/guidelines-seen").catch(() => {}); // then they are shown once more
}

// Back may bring the page as it was left: pairs, question and sign-in are looked at anew.
window.addEventListener("pageshow", (event) => {
  if (!event.persisted) return;
  outbox.renew();
  fetchProgress();
});

start();
