// @ts-check
/** Fill the help dialog with its changeable keys. */

import { $, button, make } from "../common/dom.js";
import { ACTIONS, keyToGive, nameKey } from "./keys.js";

/**
 * Fill in the keys wherever the page names one, and return what opens the help.
 * @param {ReturnType<typeof import('./keys.js').makeKeys>} keys
 */
export function setUpHelp(keys) {
  function showKeys() {
    for (const label of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("kbd[data-key]"))) label.textContent = nameKey(keys.keyOf(label.dataset.key));
  }

  function open() {
    $("keys").replaceChildren(...Object.keys(ACTIONS).map(makeRow));
    $("letters").checked = keys.letters();
    if (!$("help-dialog").open) $("help-dialog").showModal();
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
