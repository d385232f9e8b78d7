// @ts-check
/**
 * Map keys to actions. Single characters can be turned off or changed (WCAG 2.1.4), and the choice is kept in this
 * browser.
 *
 * A key counts by the character that it writes. Where that is not one of ours, as with a Cyrillic or an Arabic layout, an
 * input method that is on, or the digits of AZERTY, it counts by its place on the keyboard.
 */

import { keep, recallJson } from "../common/storage.js";

const STORAGE = "facereward:keys";

/** @typedef {Pick<KeyboardEvent, 'key' | 'code' | 'shiftKey' | 'getModifierState'>} Keydown */

/**
 * Action → words for the help, default key, and whether it lasts while the key is held.
 * @type {Record<string, {words: string, key: string, held?: boolean}>}
 */
export const ACTIONS = {
  left: { words: "left is better", key: "ArrowLeft" },
  right: { words: "right is better", key: "ArrowRight" },
  tie: { words: "tie", key: "ArrowDown" },
  done: { words: "stop here, the rest is not told apart", key: "Enter" },
  skip: { words: "skip, with a reason", key: "s" },
  undo: { words: "undo, several times over", key: "z" },
  input: { words: "show the input", key: "i", held: true },
  flicker: { words: "swap the two in place", key: "f", held: true },
  truth: { words: "ground truth beside the input", key: "g" },
  pixels: { words: "1:1 pixels", key: "x" },
  zoomIn: { words: "zoom in", key: "+" },
  zoomOut: { words: "zoom out", key: "-" },
  fit: { words: "fit", key: "0" },
  history: { words: "your last answers", key: "y" },
  help: { words: "this help", key: "?" },
};

/** @type {Record<string, string>} */
const NAMES = { Enter: "⏎", ArrowLeft: "←", ArrowRight: "→", ArrowDown: "↓", ArrowUp: "↑", "-": "−", " ": "space" };

/**
 * Keys that work besides, unless they were given to another action.
 * @type {Record<string, string>}
 */
const ALSO = { Backspace: "undo", ArrowUp: "skip", "=": "zoomIn", h: "help" };

/**
 * What the keys write on a US keyboard whose places are taken where a layout writes other letters there.
 * @type {Record<string, string>}
 */
const PLACES = { Minus: "-", Equal: "=", Slash: "/", NumpadAdd: "+", NumpadSubtract: "-", Space: " " };
/** @type {Record<string, string>} */
const WITH_SHIFT = { Equal: "+", Slash: "?" };

/** Keys that have the same name as their place, also where an input method hides the name. */
const NAMED_PLACE = /^(Arrow\w+|Backspace|Enter|Tab|Escape)$/;

/** Keys whose character is known only to an input method, or to the next key. */
const NO_CHARACTER = ["Process", "Unidentified", "Dead", ""];

/**
 * Whether a key is one like Enter or F5, which writes nothing.
 * @param {Pick<KeyboardEvent, 'key'>} event
 */
export const isNamed = ({ key }) => /^[ -~]{2,}$/.test(key) && !NO_CHARACTER.includes(key);

/**
 * The key that a key stands for by its place, null where its place does not tell.
 * @param {Pick<KeyboardEvent, 'key' | 'code' | 'shiftKey'>} event
 * @returns {string | null}
 */
function keyOfPlace({ key, code, shiftKey }) {
  // A Latin letter or digit means what it says: AZERTY's w is not the z whose place it has.
  if (isNamed({ key }) || /^[a-z0-9]$/i.test(key)) return null;
  const hidden = NO_CHARACTER.includes(key);
  const letter = /^Key([A-Z])$/.exec(code)?.[1];
  if (letter) return hidden || key > "\x7f" ? letter.toLowerCase() : null;
  const digit = /^(?:Digit|Numpad)([0-9])$/.exec(code)?.[1];
  if (digit) return shiftKey ? null : digit;
  const foreign = key > "\x7f" && !/\p{Script=Latin}/u.test(key);
  if (key === "Dead" || !(hidden || foreign)) return null;
  return (shiftKey && WITH_SHIFT[code]) || PLACES[code] || (hidden && NAMED_PLACE.test(code) ? code : null);
}

/**
 * Which keys a keydown may be, the likeliest first: by its character, then by its place.
 * @param {Keydown} event
 */
function readings(event) {
  const key = event.key.normalize("NFKC"); // an input method writes letters and digits of full width
  const { code, shiftKey } = event;
  const placed = event.getModifierState("AltGraph") ? null : keyOfPlace({ key, code, shiftKey });
  const written = key.length === 1 ? key.toLowerCase() : key;
  return [NO_CHARACTER.includes(key) ? null : written, placed].filter(Boolean);
}

/**
 * The key to be given to an action by pressing it, null where nothing says which it is.
 * @param {Keydown} event
 */
export const keyToGive = (event) => readings(event).at(-1) ?? null;

function readStored() {
  const { letters, changed } = recallJson(STORAGE) ?? {}; // unreadable: the default keys work
  const given = Object.entries(changed ?? {}).filter(([action, key]) => action in ACTIONS && typeof key === "string");
  return { letters: letters !== false, changed: Object.fromEntries(given) };
}

/**
 * A key as a person reads it.
 * @param {string} key
 */
export const nameKey = (key) => NAMES[key] ?? (key.length === 1 ? key.toUpperCase() : key);

/** The keys in use: action of a keydown, and ways to change them. */
export function makeKeys() {
  const state = readStored();
  const save = () => keep(STORAGE, JSON.stringify(state));
  /** @param {string} action */
  const keyOf = (action) => state.changed[action] ?? ACTIONS[action].key;
  return {
    keyOf,
    letters: () => state.letters,
    /** @param {boolean} on */
    setLetters(on) {
      state.letters = on;
      save();
    },
    /**
     * Give a key to an action; the action that had it gets the old key of this one.
     * @param {string} action
     * @param {string} key
     */
    change(action, key) {
      const other = Object.keys(ACTIONS).find((name) => keyOf(name) === key);
      if (other) state.changed[other] = keyOf(action);
      state.changed[action] = key;
      save();
    },
    reset() {
      state.changed = {};
      state.letters = true;
      save();
    },
    /**
     * The action of a keydown, null where there is none or single characters are off.
     * @param {Keydown} event
     */
    actionOf(event) {
      for (const key of readings(event)) {
        if (key.length === 1 && !state.letters) continue;
        const action = Object.keys(ACTIONS).find((name) => keyOf(name) === key) ?? ALSO[key];
        if (action) return action;
      }
      return null;
    },
    /**
     * The digit 1 … 9 of a keydown that is not an action, as an index from 0; null for any other key.
     * @param {Keydown} event
     */
    placeOf(event) {
      const digit = readings(event).find((key) => /^[1-9]$/.test(key));
      return digit && state.letters ? Number(digit) - 1 : null;
    },
    /**
     * The key of a digit 1 … 9 by its place on the keyboard, whatever it writes there, as an index from 0; null for any
     * other key. Shift makes no difference here: on some layouts the digits need it.
     * @param {Keydown} event
     */
    digitOf(event) {
      if (!state.letters || isNamed(event) || event.getModifierState("AltGraph")) return null;
      const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1] ?? readings(event).find((key) => /^[1-9]$/.test(key));
      return digit ? Number(digit) - 1 : null;
    },
  };
}
