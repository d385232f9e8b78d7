import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { beforeEach, test } from "node:test";

import { keyToGive, makeKeys } from "../../ui/static/label/keys.js";
import { makeBrowser } from "./browser.js";

const TABLE = new URL("../../../shared/cases/keyboard_layouts.json", import.meta.url);
const press = (key, code = "", more = {}) => ({ key, code, shiftKey: false, getModifierState: () => false, ...more });

beforeEach(() => makeBrowser());

test("the default keys, and those that work besides", () => {
  const keys = makeKeys();
  const found = ["ArrowLeft", "ArrowUp", "ArrowDown", "S", "z", "Backspace", "=", "?", "h"].map((key) => keys.actionOf(press(key)));
  assert.deepEqual(found, ["left", "skip", "tie", "skip", "undo", "undo", "zoomIn", "help", "help"]);
  assert.equal(keys.actionOf(press("q", "KeyQ")), null);
});

test("a Latin letter means what it says, wherever it lies", () => {
  const keys = makeKeys();
  assert.equal(keys.actionOf(press("w", "KeyZ")), null, "AZERTY's w has the place of z");
  assert.equal(keys.actionOf(press("z", "KeyW")), "undo");
});

test("letters and digits of other layouts count by their place", (t) => {
  if (!existsSync(TABLE)) return t.skip("needs ../shared/cases/keyboard_layouts.json");
  const keys = makeKeys();
  const actions = { KeyS: "skip", KeyZ: "undo", KeyI: "input", KeyF: "flicker", KeyX: "pixels", Digit0: "fit" };
  for (const [layout, pressed] of Object.entries(JSON.parse(readFileSync(TABLE, "utf-8")))) {
    for (const [key, code] of pressed) {
      const digit = /^Digit([1-9])$/.exec(code)?.[1];
      if (digit) assert.equal(keys.placeOf(press(key, code)), Number(digit) - 1, `${layout}: ${key}`);
      else assert.equal(keys.actionOf(press(key, code)), actions[code], `${layout}: ${key}`);
    }
  }
});

test("a key that AltGr writes does not count by its place", () => {
  const keys = makeKeys();
  assert.equal(keys.actionOf(press("ы", "KeyS", { getModifierState: (name) => name === "AltGraph" })), null);
});

test("a key given to another action is taken from the one that had it, and is kept", () => {
  makeKeys().change("tie", "s");
  const keys = makeKeys();
  assert.deepEqual([keys.actionOf(press("s")), keys.actionOf(press("ArrowDown"))], ["tie", "skip"]);
  keys.reset();
  assert.equal(makeKeys().actionOf(press("s")), "skip");
});

test("with single characters off only named keys work", () => {
  const keys = makeKeys();
  keys.setLetters(false);
  assert.deepEqual([keys.actionOf(press("s")), keys.placeOf(press("1")), keys.actionOf(press("ArrowLeft"))], [null, null, "left"]);
});

test("what this browser kept may be anything", () => {
  for (const text of ["{", "null", "[]", '{"changed":{"tie":5,"nothing":"q"}}']) {
    localStorage.setItem("facereward:keys", text);
    assert.equal(makeKeys().actionOf(press("ArrowDown")), "tie", text);
  }
});

test("the key to give to an action is the one that its place names", () => {
  assert.equal(keyToGive(press("ы", "KeyS")), "s");
  assert.equal(keyToGive(press("Q", "KeyQ")), "q");
  assert.equal(keyToGive(press("Dead", "BracketLeft")), null);
});

test("digits by their place choose candidates, with Shift or without, and no named key does", () => {
  const keys = makeKeys();
  const places = [["1", "Digit1"], ["&", "Digit1"], ["+", "Digit1"], ["!", "Digit1"], ["2", "Numpad2"], ["Process", "Digit3"], ["۱", "Digit1"], ["4", ""]];
  assert.deepEqual(places.map(([key, code]) => keys.digitOf(press(key, code))), [0, 0, 0, 0, 1, 2, 0, 3]);
  assert.equal(keys.digitOf(press("!", "Digit1", { shiftKey: true })), 0, "the caller tells Shift");
  const none = [["End", "Numpad1"], ["Clear", "Numpad5"], ["F1", "F1"], ["0", "Digit0"], ["a", "KeyQ"]];
  assert.deepEqual(none.map(([key, code]) => keys.digitOf(press(key, code))), [null, null, null, null, null]);
  keys.setLetters(false);
  assert.equal(keys.digitOf(press("1", "Digit1")), null);
});
