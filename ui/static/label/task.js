// @ts-check
/**
 * Answer a task of three to six candidates: for the best, the best and the worst, or an order. Candidates are buttons in
 * a grid; what was said so far stands on them and in a line below, which screen readers are told of.
 */

import { $, make } from "../common/dom.js";

/** @import { View } from "./viewer.js" */
/** @typedef {{tiers: number[][], worst: number[][]}} Ranking places on the screen from 0, best first */
/** @typedef {{place: number, tied: boolean}} Step a candidate, and whether it is as good as the one before */

export const MOST = 6;
const NUMBERS = ["", "", "two", "three", "four", "five", "six"];
const ORDINALS = ["1st", "2nd", "3rd", "4th", "5th", "6th"];

/**
 * What is asked about a pair or a task, in words.
 * @param {View} view
 */
export function nameAsked({ images, asked }) {
  if (!images) return "Choose the better of two";
  const number = NUMBERS[images.length];
  return {
    best: `Choose the best of ${number}`,
    best_worst: `Choose the best of ${number}, then the worst`,
    order: `Order the ${number}, best first`,
  }[asked];
}

/**
 * A ranking in few words, candidates by their numbers: "3 best, 1 worst", "3 > 1 = 2 > …", "all tied".
 * @param {Ranking} ranking
 * @param {number} size
 */
export function nameRanking({ tiers, worst }, size) {
  const told = [...tiers, ...worst].flat().length;
  const [first] = tiers;
  if (first.length === size) return "all tied";
  const names = (/** @type {number[]} */ tier) => tier.map((place) => place + 1).join(" = ");
  if (worst.length) return `${names(first)} best, ${names(worst[0])} worst`;
  if (tiers.length === 1) return `${names(first)} best`;
  return [...tiers.map(names), ...(told < size ? ["…"] : [])].join(" > ");
}

/**
 * The ordinal of each candidate's tier: as many above it and one; of the best and the worst these words.
 * @param {Ranking} ranking
 * @returns {Map<number, string>} by place
 */
export function markTiers({ tiers, worst }) {
  /** @type {Map<number, string>} */
  const marks = new Map();
  let above = 0;
  for (const tier of tiers) {
    for (const place of tier) marks.set(place, ORDINALS[above] + (tier.length > 1 ? " =" : ""));
    above += tier.length;
  }
  for (const place of worst.flat()) marks.set(place, "worst");
  return marks;
}

/**
 * The images of an own answer to a task, best first, each with its mark.
 * @param {Ranking & {images: {url: string}[]}} entry
 */
export function picturesOf({ images, tiers, worst }) {
  const marks = markTiers({ tiers, worst });
  if (tiers.length === 1 && tiers[0].length < images.length) for (const place of tiers[0]) marks.set(place, "best");
  const last = worst.flat();
  const named = [...tiers.flat(), ...last];
  const between = images.map((_, place) => place).filter((place) => !named.includes(place));
  const list = make("div", { className: "answered" });
  for (const place of [...tiers.flat(), ...between, ...last]) {
    const image = Object.assign(new Image(), { src: images[place].url, loading: "lazy", alt: `candidate ${place + 1}` });
    image.classList.toggle("chosen", tiers[0]?.includes(place) ?? false);
    list.append(make("figure", {}, image, make("figcaption", {}, marks.get(place) ?? "–")));
  }
  return list;
}

/** The frames of a task, as many as the largest has. */
export function makeFrames() {
  return Array.from({ length: MOST }, (_, place) => {
    const frame = make("button", { type: "button", className: "frame candidate" });
    frame.append(make("span", { className: "number" }, String(place + 1)), make("span", { className: "mark", hidden: true }));
    return frame;
  });
}

/**
 * Make what answers tasks.
 * @param {HTMLElement[]} frames
 * @param {object} page
 * @param {(ranking: Ranking, time: number | null) => void} page.onAnswer called with a whole answer
 * @param {() => boolean} page.isReady whether an answer counts now; says why not where that is not seen
 * @param {(event: MouseEvent) => boolean} page.isStray whether a click was meant for something else
 * @param {(text: string) => void} page.onRemark
 */
export function makeTask(frames, { onAnswer, isReady, isStray, onRemark }) {
  const doneButton = $("done");
  /** @type {View | null} */
  let view = null; // of a task
  /** @type {Step[]} */
  let steps = [];
  let tying = false; // whether the next candidate is as good as the last one
  /** @type {number | null} */
  let pointed = null; // the candidate below the pointer

  /** @returns {number[][]} */
  function tiersOf() {
    /** @type {number[][]} */
    const tiers = [];
    for (const { place, tied } of steps) {
      if (tied) tiers.at(-1).push(place);
      else tiers.push([place]);
    }
    return tiers;
  }

  const left = () => view.images.map((_, place) => place).filter((place) => !steps.some((step) => step.place === place));

  /**
   * @param {number[][]} tiers
   * @param {number | null} time
   * @param {number[][]} worst
   */
  function finish(tiers, time, worst = []) {
    onAnswer({ tiers, worst }, time);
  }

  /**
   * Take the next candidate; one that was taken before is given back.
   * @param {number} place
   * @param {number | null} time
   */
  function pick(place, time) {
    if (!view?.images[place] || !isReady()) return;
    const at = steps.findIndex((step) => step.place === place);
    if (at >= 0) return giveBack(at);
    if (view.asked === "best") return finish([[place]], time);
    if (view.asked === "best_worst" && steps.length) return finish(tiersOf(), time, [[place]]);
    steps.push({ place, tied: tying });
    tying = false;
    const rest = left();
    if (view.asked === "order" && rest.length === 1) return finish([...tiersOf(), rest], time);
    showMarks();
  }

  /** @param {number} at */
  function giveBack(at) {
    if (!steps[at].tied && steps[at + 1]?.tied) steps[at + 1].tied = false;
    steps.splice(at, 1);
    tying = false;
    showMarks();
  }

  /**
   * All tied, where nothing was said; in an order, that the next one ties with the last, and a second time the rest.
   * @param {number | null} time
   */
  function tie(time) {
    if (!view || !isReady()) return;
    if (!steps.length) return finish([left()], time);
    if (view.asked !== "order") return onRemark("Now choose the worst, or take the best back.");
    if (tying) return finish([...tiersOf(), left()], time);
    tying = true;
    showMarks();
  }

  /**
   * Stop where the order is not sure any more.
   * @param {number | null} time
   */
  function done(time) {
    if (view?.asked !== "order" || !isReady()) return;
    if (steps.length) finish(tiersOf(), time);
    else onRemark("Choose the best one first, or skip.");
  }

  function showMarks() {
    const order = view.asked === "order";
    const marks = order ? markTiers({ tiers: tiersOf(), worst: [] }) : new Map(steps.map(({ place }) => [place, "best"]));
    view.images.forEach((_, place) => {
      const mark = marks.get(place);
      const badge = /** @type {HTMLElement} */ (frames[place].lastElementChild);
      badge.hidden = !mark;
      badge.textContent = mark ?? "";
      frames[place].setAttribute("aria-pressed", String(Boolean(mark)));
      const name = `Candidate ${place + 1} of ${view.images.length}`;
      frames[place].setAttribute("aria-label", mark ? `${name}, ${mark.replace(" =", ", tied")}` : name);
    });
    const keys = steps.length ? null : make("kbd", {}, `1 – ${view.images.length}`);
    $("task-state").replaceChildren(sayState(marks), ...(keys ? [" ", keys] : []));
    $("tie-words").textContent = !steps.length || !order ? "All the same" : tying ? "The rest is tied" : "Tied with the next";
    $("tie").disabled = steps.length > 0 && !order;
    doneButton.disabled = !steps.length;
  }

  /** @param {Map<number, string>} marks */
  function sayState(marks) {
    const last = steps.at(-1);
    const said = last && `${marks.get(last.place)}: candidate ${last.place + 1}. `.replace(/^./, (letter) => letter.toUpperCase());
    if (!last) return "The best is …";
    if (view.asked === "best_worst") return `${said}The worst is …`;
    return `${said}${tying ? "Just as good is …" : "Next is …"}`;
  }

  frames.forEach((frame, place) => {
    frame.addEventListener("click", (event) => {
      const twice = event.detail > 1 && steps.some((step) => step.place === place);
      if (!twice && !isStray(event)) pick(place, null);
    });
    // The focus stays with the keyboard's user: else Enter, which ends an order, would press what was clicked last.
    frame.addEventListener("mousedown", (event) => {
      event.preventDefault();
      if (document.activeElement instanceof HTMLElement) document.activeElement.blur();
    });
    frame.addEventListener("pointerenter", () => (pointed = place));
    frame.addEventListener("pointerleave", () => (pointed = null));
  });

  return {
    /**
     * Begin the answer to what is shown now; of a pair there is nothing to be done here.
     * @param {View} shown
     */
    show(shown) {
      view = shown.images ? shown : null;
      steps = [];
      tying = false;
      for (const side of ["answer-left", "answer-right"]) $(side).hidden = view !== null;
      $("task-state").hidden = view === null;
      doneButton.hidden = false;
      if (view?.asked === "order") $("answer-right").after(doneButton);
      else doneButton.remove();
      if (view) return showMarks();
      $("tie-words").textContent = "Tie";
      $("tie").disabled = false;
    },
    pick,
    tie,
    done,
    /** Take the last thing said back; false where nothing was. */
    takeBack() {
      if (!view || !steps.length) return false;
      if (!tying) giveBack(steps.length - 1);
      tying = false;
      showMarks();
      return true;
    },
    /** The candidate that the others are compared with: below the pointer, with the focus, or taken last. */
    reference() {
      const focused = frames.findIndex((frame) => frame === document.activeElement);
      const place = pointed ?? (focused >= 0 ? focused : (steps.at(-1)?.place ?? 0));
      return view?.images[place] ? place : 0;
    },
  };
}
