import assert from "node:assert/strict";
import { test } from "node:test";

import { chooseColumns } from "../../ui/static/label/grid.js";
import { markTiers, nameAsked, nameRanking } from "../../ui/static/label/task.js";

const SQUARE = { width: 512, height: 512 };

test("the grid that shows the images largest", () => {
  const room = (width, height) => ({ width, height });
  const chosen = [2, 3, 4, 5, 6].map((count) => chooseColumns(count, room(1090, 600), SQUARE));
  assert.deepEqual(chosen, [2, 3, 2, 3, 3], "a window");
  assert.deepEqual([3, 4, 5, 6].map((count) => chooseColumns(count, room(380, 480), SQUARE)), [2, 2, 2, 2], "a phone");
  assert.equal(chooseColumns(6, room(300, 900), SQUARE), 2);
  assert.equal(chooseColumns(4, room(1090, 300), SQUARE), 4);
  assert.equal(chooseColumns(3, room(1090, 600), { width: 1024, height: 256 }), 1, "wide images stand above each other");
  assert.equal(chooseColumns(4, room(0, 0), SQUARE) >= 1, true, "a window that is not laid out yet");
});

test("what is asked, in words", () => {
  const images = (count) => Array(count).fill({});
  assert.equal(nameAsked({}), "Choose the better of two");
  assert.equal(nameAsked({ images: images(4), asked: "best" }), "Choose the best of four");
  assert.equal(nameAsked({ images: images(3), asked: "best_worst" }), "Choose the best of three, then the worst");
  assert.equal(nameAsked({ images: images(6), asked: "order" }), "Order the six, best first");
});

test("an answer in a few words", () => {
  assert.equal(nameRanking({ tiers: [[2]], worst: [] }, 4), "3 best");
  assert.equal(nameRanking({ tiers: [[2]], worst: [[0]] }, 4), "3 best, 1 worst");
  assert.equal(nameRanking({ tiers: [[2], [0, 1]], worst: [] }, 4), "3 > 1 = 2 > …");
  assert.equal(nameRanking({ tiers: [[2], [0, 1], [3]], worst: [] }, 4), "3 > 1 = 2 > 4");
  assert.equal(nameRanking({ tiers: [[0, 1, 2]], worst: [] }, 3), "all tied");
});

test("marks count those above, and tied ones share theirs", () => {
  const marks = markTiers({ tiers: [[3], [0, 2], [1]], worst: [] });
  assert.deepEqual([0, 1, 2, 3].map((place) => marks.get(place)), ["2nd =", "4th", "2nd =", "1st"]);
  assert.deepEqual([...markTiers({ tiers: [[1]], worst: [[2]] })], [[1, "1st"], [2, "worst"]]);
});
