// @ts-check
/** Make the small parts that the forms of the Train page share: labelled controls, errors, notes, commands. */

import { make } from "../common/dom.js";
import { at } from "../common/server.js";

let numbered = 0;

/** An id that no other control has. */
export const makeId = () => `tr-control-${++numbered}`;

/** @param {string} text */
export const note = (text) => make("p", { className: "fr-note tr-note" }, text);

/** @param {string} text */
export const alert = (text) => make("p", { className: "fr-error", role: "alert" }, text);

/** Where the error of a control is said; empty, it takes no place. */
export const errorLine = () => make("p", { className: "tr-error", id: makeId() });

/**
 * Say what is wrong with a control.
 * @param {HTMLElement} line of `errorLine`
 * @param {string | undefined} text nothing is wrong without one
 * @param {HTMLElement} control
 */
export function showError(line, text, control) {
  line.textContent = text ?? "";
  control.setAttribute("aria-invalid", String(Boolean(text)));
}

/**
 * A control below its label.
 * @template {HTMLElement} Control
 * @param {string} label
 * @param {Control} control
 */
export function labelled(label, control) {
  control.id = makeId();
  return { element: make("div", { className: "tr-field" }, make("label", { htmlFor: control.id }, label), control), control };
}

/**
 * A small button, such as one in the head of a field.
 * @param {string} text
 * @param {() => void} onClick
 */
export const smallButton = (text, onClick) => make("button", { type: "button", className: "tr-small", on: { click: onClick } }, text);

/**
 * A checkbox with its words.
 * @param {{value: string | number, words: string, checked?: boolean}} choice
 * @param {() => void} onChange
 */
export function makeCheck({ value, words, checked = false }, onChange) {
  const box = make("input", { type: "checkbox", value: String(value), checked, on: { change: onChange } });
  return { element: make("label", { className: "tr-check" }, box, words), box };
}

/** @param {number[]} ids of runs */
export function linkRuns(ids, word = "run") {
  const links = ids.map((id) => make("a", { href: at(`/admin/runs#run=${id}`) }, `${word} ${id}`));
  return links.flatMap((link, place) => (place ? [", ", link] : [link]));
}

/**
 * A command line that breaks between options, not at the dashes in them; its text stays what a shell reads.
 * @param {HTMLElement} place
 * @param {string} text
 */
export function showCommand(place, text) {
  const parts = text.split(/ (?=--)/).map((part) => make("span", {}, part));
  place.replaceChildren(...parts.flatMap((part, number) => (number ? [" ", part] : [part])));
}
