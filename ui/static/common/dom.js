// @ts-check
/** Make elements: texts are set as text, never as HTML. */

/** Properties that an element has, but only its attribute of the same name can set. */
const ATTRIBUTES_ALONE = ["list", "form"];

/**
 * An element with properties, attributes and listeners (`on`), and children; those that are null are left out.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, unknown>} properties
 * @param {(Node | string | null | undefined)[]} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on") for (const [event, action] of Object.entries(value)) made.addEventListener(event, action);
    else if (name in made && !ATTRIBUTES_ALONE.includes(name)) Object.assign(made, { [name]: value });
    else made.setAttribute(name, String(value));
  }
  made.append(...children.filter((child) => child != null));
  if (typeof children[0] === "string") made.dir = "auto"; // people's names and captions in the direction of their script
  return made;
}

/**
 * A button with a text and, where a key presses it, that key.
 * @param {string} text
 * @param {(event: MouseEvent) => void} onClick
 * @param {string} key
 */
export function button(text, onClick, key = "") {
  return make("button", { type: "button", on: { click: onClick } }, `${text} `, key ? make("kbd", {}, key) : null);
}

/**
 * An element of a drawing with attributes and a text.
 * @param {string} tag
 * @param {Record<string, string | number>} attributes
 * @param {string} text
 */
export function svg(tag, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  if (text) made.textContent = text;
  return made;
}

/**
 * The element with an id; of the page's own HTML, so it is there.
 * @param {string} id
 * @returns {any}
 */
export const $ = (id) => document.getElementById(id);
