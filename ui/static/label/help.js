// @ts-check
/** Fill the help dialog with its changeable keys. */

import { $, button, make } from "../common/dom.js";
import { ACTIONS, keyToGive, nameKey } from "./keys.js";

/**
 * Fill in the keys wherever the page names one, and return what opens the help.
 * @param {ReturnType<typeof import('./keys.js').makeKeys>} keys
 * @param {() => boolean} showsTasks whether tasks of several candidates are shown
 */
export function setUpHelp(keys, showsTasks) {
  function showKeys() {
    for (const label of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("kbd[data-key]"))) label.textContent = nameKey(keys.keyOf(label.dataset.key));
  }

  function open() {
    const tasks = showsTasks();
    const actions = Object.keys(ACTIONS).filter((action) => tasks || action !== "done");
    $("keys").replaceChildren(...actions.map(makeRow));
    $("digits").textContent = tasks ? "1 – 6 choose a candidate. Shift with 1 – 9 gives reasons for the last answer." : "1 – 9 give reasons for the last answer.";
    $("task-help").hidden = !tasks;
    $("task-help").textContent = sayHowToAnswer();
    $("letters").checked = keys.letters();
    if (!$("help-dialog").open) $("help-dialog").showModal();
  }

  /** How tasks are answered, by the keys in use. */
  function sayHowToAnswer() {
    const [tie, undo, done] = ["tie", "undo", "done"].map((action) => nameKey(keys.keyOf(action)));
    return `The best of several: one key or click. The best, then the worst: two. An order: the best first, and so on; the last one follows by itself. ${done} stops where you are not sure of the rest. ${tie} says that all are the same; in an order that the next one is as good as the last one, and pressed twice that the rest is. ${undo} takes the last one back. While the flicker is held, all places show the candidate below the pointer.`;
  }

  /** @param {string} action */
  function makeRow(action) {
    const { words, held } = ACTIONS[action];
    const change = button("", () => catchKey(action, change));
    change.replaceChildren(make("kbd", {}, nameKey(keys.keyOf(action))));
    change.setAttribute("aria-label", `Change the key for: ${words}`);
    return make("tr", {}, make("td", {}, change), make("td", {}, held ? `hold: ${words}` : words));
  }

  /**
   * @param {string} action
   * @param {HTMLElement} control
   */
  function catchKey(action, control) {
    control.textContent = "press a key";
    control.addEventListener("keydown", (event) => {
      event.preventDefault();
      event.stopPropagation();
      if (["Shift", "Control", "Alt", "AltGraph", "Meta"].includes(event.key)) return; // on the way to "!" and the like
      const key = keyToGive(event);
      // Digits stay with the reasons.
      if (key && key !== "Escape" && key !== "Tab" && !/^[1-9]$/.test(key)) keys.change(action, key);
      showKeys();
      open(); // rebuilds the table, and so this listener ends
    });
  }

  $("open-help").addEventListener("click", open);
  $("letters").addEventListener("change", () => keys.setLetters($("letters").checked));
  $("reset-keys").addEventListener("click", () => {
    keys.reset();
    showKeys();
    open();
  });
  showKeys();
  return open;
}
