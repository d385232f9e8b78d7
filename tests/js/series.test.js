import assert from "node:assert/strict";
import { test } from "node:test";

import { makeSeries } from "../../ui/static/runs/series.js";
import { answerWith, json } from "./browser.js";

test("new points are added to those that are there, of old series and new ones", async () => {
  const series = makeSeries(7);
  const sent = answerWith(
    () => json({ whole: true, version: "1", series: { loss: [[1, 2], [0.5, 0.4]] } }),
    () => json({ whole: false, version: "2", series: { loss: [[3], [0.3]], reward: [[3], [null]] } }),
  );
  assert.equal(await series.look(), true);
  assert.equal(await series.look(), true);
  assert.deepEqual(Object.fromEntries(series.all), { loss: { x: [1, 2, 3], y: [0.5, 0.4, 0.3] }, reward: { x: [3], y: [null] } });
  assert.deepEqual(sent.map(({ address }) => address.split("/api/")[1]), ["runs/7/series?points=400&since=", "runs/7/series?points=400&since=1"]);
});

test("a whole answer takes the place of all points", async () => {
  const series = makeSeries(7);
  answerWith(
    () => json({ whole: true, version: "1", series: { loss: [[1], [0.5]], gone: [[1], [1]] } }),
    () => json({ whole: true, version: "2", series: { loss: [[9], [0.1]] } }),
  );
  await series.look();
  await series.look();
  assert.deepEqual(Object.fromEntries(series.all), { loss: { x: [9], y: [0.1] } });
});

test("no news changes nothing", async () => {
  const series = makeSeries(7);
  answerWith(() => json({ whole: true, version: "1", series: { loss: [[1], [0.5]] } }), () => json({}, 304));
  await series.look();
  assert.equal(await series.look(), false);
  assert.deepEqual(series.all.get("loss"), { x: [1], y: [0.5] });
});

test("a series that has grown long is asked for anew, in few points", async () => {
  const series = makeSeries(7);
  const many = Array.from({ length: 900 }, (_, step) => step);
  const sent = answerWith(
    () => json({ whole: true, version: "1", series: { loss: [[0], [0]] } }),
    () => json({ whole: false, version: "2", series: { loss: [many, many] } }),
    () => json({ whole: true, version: "3", series: { loss: [[0], [0]] } }),
  );
  for (let time = 0; time < 3; time += 1) await series.look();
  assert.ok(sent[2].address.endsWith("since="));
});
