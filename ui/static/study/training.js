// @ts-check
/** Show the training pairs, take an answer to each by button or key, and say what is right and why. */

import { $ } from "../common/dom.js";
import { post } from "../common/server.js";
import { makeKeys, nameKey } from "../label/keys.js";

/**
 * @typedef {object} Training the pair that is shown
 * @property {number} place from 0
 * @property {number} of
 * @property {string} question
 * @property {string} left address of an image
 * @property {string} right
 */

/** @type {Record<string, string>} */
const WORDS = { left: "the left one is better", right: "the right one is better", tie: "neither is better" };

/**
 * @param {(error: Error) => void} onTrouble
 * @param {() => void} onNext called when the explanation was read
 */
export function setUpTraining(onTrouble, onNext) {
  const keys = makeKeys();
  const buttons = /** @type {HTMLButtonElement[]} */ ([...document.querySelectorAll("[data-answer]")]);
  /** @type {Training | null} */
  let shown = null;
  let locked = true;

  /** @param {boolean} on */
  function lock(on) {
    locked = on;
    for (const button of buttons) button.disabled = on;
  }

  /** @param {string} given */
  async function answer(given) {
    if (locked || !shown) return;
    lock(true);
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.answer === given));
    try {
      say(given, await post("/api/study/training", { place: shown.place, answer: given }));
    } catch (error) {
      lock(false);
      onTrouble(error);
    }
  }

  /**
   * @param {string} given
   * @param {{right: boolean, answer: string, explanation: string}} said
   */
  function say(given, { right, answer: known, explanation }) {
    $("training-said").dataset.right = right ? "yes" : "no";
    $("training-pair").dataset.right = known;
    $("training-verdict").textContent = right ? `Right: ${WORDS[known]}.` : `You said ${WORDS[given]}. Here ${WORDS[known]}.`;
    $("training-explanation").textContent = explanation;
    $("training-said").hidden = false;
    $("training-next").focus();
  }

  for (const button of buttons) {
    const { answer: action } = button.dataset;
    button.querySelector("kbd").textContent = nameKey(keys.keyOf(action));
    button.addEventListener("click", () => answer(action));
  }
  document.addEventListener("keydown", (event) => {
    const action = keys.actionOf(event);
    if ($("training").hidden || event.repeat || event.ctrlKey || event.altKey || event.metaKey || !(action in WORDS)) return;
    event.preventDefault();
    answer(action);
  });
  $("training-next").addEventListener("click", onNext);

  return {
    /**
     * Show a pair; no answer is taken until both images can be painted.
     * @param {Training} next
     */
    async show(next) {
      if (shown && next.place === shown.place && next.left === shown.left) return;
      shown = next;
      lock(true);
      $("training-said").hidden = true;
      delete $("training-pair").dataset.right;
      for (const button of buttons) button.setAttribute("aria-pressed", "false");
      $("training-count").textContent = `${next.place + 1} of ${next.of}`;
      $("training-question").textContent = next.question;
      $("training-left").src = next.left;
      $("training-right").src = next.right;
      try {
        await Promise.all([$("training-left").decode(), $("training-right").decode()]);
      } catch {
        onTrouble(new Error("An image of this pair could not be loaded. Reload the page to try again."));
        return;
      }
      if (shown === next) lock(false);
    },
  };
}
