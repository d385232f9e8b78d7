import assert from "node:assert/strict";
import { test } from "node:test";

import { arrange, legendNames, logTicks, nearest, short, ticks } from "../../ui/static/runs/charts.js";

const rounded = (values) => values.map((value) => Number(value.toFixed(9)));

test("ticks are round numbers within the axis", () => {
  assert.deepEqual(rounded(ticks(0, 1, 5)), [0, 0.2, 0.4, 0.6, 0.8, 1]);
  assert.deepEqual(rounded(ticks(-0.04, 1.04, 4)), [0, 0.5, 1]);
  assert.deepEqual(rounded(ticks(3, 997, 6)), [200, 400, 600, 800]);
  for (const [low, high, count] of [[1e-9, 3e-9, 5], [-7e6, 9e6, 4], [0.1, 0.1001, 6]]) {
    const found = ticks(low, high, count);
    assert.ok(found.length >= 2 && found.length <= count + 1, `${found}`);
    assert.ok(found.every((tick) => tick >= low - 1e-12 && tick <= high * (1 + 1e-9)), `${found}`);
  }
});

test("ticks of a logarithmic axis are powers of ten, with 2 and 5 between few of them", () => {
  assert.deepEqual(logTicks(-3, 0), [-3, -2, -1, 0]);
  assert.deepEqual(logTicks(0, 1).map((at) => Math.round(10 ** at)), [1, 2, 5, 10]);
  assert.ok(logTicks(-30, 30).length <= 8);
});

test("the nearest place is found in ascending numbers, also beyond their ends", () => {
  const steps = [0, 10, 20, 40];
  assert.deepEqual([-5, 4, 6, 29, 31, 99].map((step) => nearest(steps, step)), [0, 0, 1, 2, 3, 3]);
});

test("numbers are short", () => {
  assert.deepEqual([0, 0.12345, 1234.56, 1e-7, 2.5e6, null, NaN].map(short), ["0", "0.1235", "1235", "1e-7", "2.5e6", "–", "–"]);
});

test("series of one kind share a chart, those with scales of their own do not", () => {
  const found = arrange(["loss", "val/accuracy", "loss/l1", "held_out/live", "held_out/frozen", "held_out/lpips", "rate", "val/other"]);
  assert.deepEqual(
    found.map(({ title, charts }) => [title, charts.map(({ names }) => names)]),
    [
      ["Accuracy", [["val/accuracy"]]],
      ["Hacking monitor, on held-out faces", [["held_out/live", "held_out/frozen"], ["held_out/lpips"]]],
      ["Losses", [["loss", "loss/l1"]]],
      ["Other", [["rate"]]],
      ["Validation", [["val/other"]]],
    ],
  );
});

test("what groups are compared by has a chart each, beside the rewards", () => {
  const found = arrange(["loss/grpo", "loss", "reward", "group_spread", "ratio", "clipped", "divergence", "evaluations", "rewards/accuracies"]);
  assert.deepEqual(
    found.map(({ title, charts }) => [title, charts.map((chart) => chart.title)]),
    [
      ["Accuracy", ["Accuracy"]],
      ["Rewards", ["Rewards"]],
      ["Comparing groups", ["group spread", "ratio", "clipped", "divergence"]],
      ["Losses", ["Losses"]],
      ["Other", ["evaluations"]],
    ],
  );
});

test("a legend leaves out what all names begin with", () => {
  assert.deepEqual(legendNames(["loss/l1", "loss/clip"]), ["l1", "clip"]);
  assert.deepEqual(legendNames(["loss/l1", "reward"]), ["loss/l1", "reward"]);
});
