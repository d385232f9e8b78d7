// @ts-check
/** Run the button that goes from the system's theme to light to dark; this browser remembers it. */

import { forget, keep } from "./storage.js";

/** @type {Record<string, string>} */
const THEMES = { undefined: "light", light: "dark" };

/**
 * @param {HTMLElement} button
 * @param {() => void} onChange called at once too
 */
export function setUpTheme(button, onChange = () => {}) {
  const root = document.documentElement;
  const show = () => {
    button.textContent = `Theme: ${root.dataset.theme ?? "auto"}`;
    onChange();
  };
  button.addEventListener("click", () => {
    const next = THEMES[String(root.dataset.theme)];
    if (next) {
      root.dataset.theme = next;
      keep("facereward:theme", next);
    } else {
      delete root.dataset.theme;
      forget("facereward:theme");
    }
    show();
  });
  show();
}
