/**
 * Which key does what. Single characters can be turned off or changed (WCAG 2.1.4), and the
 * choice is kept in this browser.
 */

const STORAGE = "facereward:keys";

/** Action → words for the help, default key, and whether it lasts while the key is held. */
export const ACTIONS = {
  left: { words: "left is better", key: "ArrowLeft" },
  right: { words: "right is better", key: "ArrowRight" },
  tie: { words: "tie", key: "ArrowDown" },
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

const NAMES = { ArrowLeft: "←", ArrowRight: "→", ArrowDown: "↓", ArrowUp: "↑", "-": "−", " ": "space" };

/** Keys that work besides, unless they were given to another action. */
const ALSO = { Backspace: "undo", ArrowUp: "skip", "=": "zoomIn", h: "help" };

function readStored() {
  try {
    return JSON.parse(localStorage.getItem(STORAGE)) ?? {};
  } catch {
    return {}; // unreadable: the default keys work
  }
}

/** A key as a person reads it. */
export const nameKey = (key) => NAMES[key] ?? (key.length === 1 ? key.toUpperCase() : key);

/** The keys in use: action of a keydown, and ways to change them. */
export function makeKeys() {
  const stored = readStored();
  const state = { letters: stored.letters ?? true, changed: stored.changed ?? {} };
  const save = () => localStorage.setItem(STORAGE, JSON.stringify(state));
  const keyOf = (action) => state.changed[action] ?? ACTIONS[action].key;
  return {
    keyOf,
    letters: () => state.letters,
    setLetters(on) {
      state.letters = on;
      save();
    },
    /** Give a key to an action; whoever had it gets the action's old one. */
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
    /** The action of a pressed key, null where there is none or single characters are off. */
    actionOf(key) {
      const pressed = key.length === 1 ? key.toLowerCase() : key;
      if (pressed.length === 1 && !state.letters) return null;
      return Object.keys(ACTIONS).find((name) => keyOf(name) === pressed) ?? ALSO[pressed] ?? null;
    },
  };
}
