// @ts-check
/** Give a participant what the panel wants at the end: a code to copy, or the way back. */

import { $ } from "../common/dom.js";

/** @typedef {{title: string, words: string, code: string, address: string, back_to: string, automatic: boolean}} Ending */

const BACK_AFTER_SECONDS = 3;
/** @type {ReturnType<typeof setInterval> | undefined} */
let countdown;

/** @param {Ending} ending */
export function showEnding({ title, words, code, address, back_to: panel, automatic }) {
  $("ending-title").textContent = title;
  $("ending-words").textContent = words;
  $("code").textContent = code;
  $("code-part").hidden = !code;
  $("address-part").hidden = !address;
  $("nothing-part").hidden = Boolean(code || address);
  if (!address) return;
  $("address").href = address;
  $("address").textContent = `Go back to ${panel}`;
  if (automatic) goBackSoon(address, panel);
}

/**
 * @param {string} address
 * @param {string} panel
 */
function goBackSoon(address, panel) {
  let left = BACK_AFTER_SECONDS;
  const say = () => ($("countdown").textContent = `You go back to ${panel} in ${left} ${left === 1 ? "second" : "seconds"}.`);
  clearInterval(countdown);
  say();
  countdown = setInterval(() => {
    left -= 1;
    if (left > 0) return say();
    clearInterval(countdown);
    location.assign(address);
  }, 1000);
  $("stay").hidden = false;
}

$("stay").addEventListener("click", () => {
  clearInterval(countdown);
  $("stay").hidden = true;
  $("countdown").textContent = "";
});

$("copy").addEventListener("click", async () => {
  const code = $("code").textContent;
  try {
    await navigator.clipboard.writeText(code);
    $("copied").textContent = "Copied.";
  } catch {
    getSelection().selectAllChildren($("code")); // a plain http address has no clipboard
    $("copied").textContent = "Selected; copy it with Ctrl+C (⌘C), or hold it down on a phone.";
  }
});
