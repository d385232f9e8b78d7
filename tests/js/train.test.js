import assert from "node:assert/strict";
import { test } from "node:test";

import { readAsked, writeAsked } from "../../ui/static/train/address.js";
import { inWords, same, say } from "../../ui/static/train/fields.js";
import { sayEstimate } from "../../ui/static/train/plan.js";

const KIND = {
  kind: "reward train",
  preset: "hpsv2",
  inputs: [{ name: "dataset" }, { name: "reward" }],
  fields: [
    { key: "train.max_steps", name: "max_steps", type: "whole number" },
    { key: "train.device", name: "device", type: "text" }, // a name that the page itself has
    { key: "train.ema", name: "ema", type: "switch" },
    { key: "loss.terms", name: "terms", type: "choices" },
  ],
};
const USUAL = { preset: "hpsv2", device: "cuda:0" };
const read = (text) => readAsked(new URLSearchParams(text), [KIND]);

test("a filled-in form comes back from its address", () => {
  const asked = {
    kind: "reward train",
    preset: "/some where/a&b.toml",
    inputs: { dataset: ["/data/a", "/data/b"] },
    values: { "train.max_steps": "1e3", "train.device": "cpu", "train.ema": false, "loss.terms": ["l1", "clip"] },
    device: "",
    processes: 4,
    after: [3, 5],
  };
  assert.deepEqual(readAsked(writeAsked(asked, USUAL), [KIND]), asked);
});

test("what is usual stays out of the address", () => {
  const asked = { kind: "reward train", preset: "hpsv2", inputs: {}, values: {}, device: "cuda:0", processes: 1, after: [] };
  assert.equal(writeAsked(asked, USUAL).toString(), "kind=reward+train");
});

test("no choice at all is different from the preset's choices", () => {
  assert.deepEqual(readAsked(writeAsked({ kind: KIND.kind, inputs: {}, values: { "loss.terms": [] }, after: [] }, USUAL), [KIND]).values, { "loss.terms": [] });
  assert.deepEqual(read("kind=reward train").values, {});
});

test("a setting may be named by its short name, unless the page means something else by it", () => {
  assert.deepEqual(read("kind=reward train&max_steps=5&ema=true").values, { "train.max_steps": "5", "train.ema": true });
  assert.deepEqual(read("kind=reward train&device=cpu"), { kind: KIND.kind, preset: undefined, inputs: {}, values: {}, device: "cpu", after: [] });
});

test("nonsense in an address is passed over", () => {
  assert.deepEqual(read("kind=nothing&max_steps=5"), { kind: undefined, preset: undefined, inputs: {}, values: {}, after: [] });
  assert.deepEqual(read("kind=reward train&processes=many&after=x&after=2&dataset="), { kind: KIND.kind, preset: undefined, inputs: {}, values: {}, processes: 1, after: [2] });
});

test("names and values in words", () => {
  assert.deepEqual(["max_steps", "image_size_px", "seed"].map(inWords), ["Max steps", "Image size", "Seed"]);
  assert.deepEqual([true, false, [], ["a", "b"], "", "a\nb"].map(say), ["on", "off", "none", "a, b", "empty", "a, b"]);
});

test("lists are the same in any order, texts only as they are", () => {
  assert.ok(same(["a", "b"], ["b", "a"]));
  assert.ok(!same(["a"], ["a", "b"]));
  assert.ok(!same("1", "1.0"));
});

test("an estimate says what it comes from", () => {
  const told = { run: 7, seconds: 5400, seconds_a_step: 0.05, gpu_gib: 11.26 };
  assert.equal(sayEstimate({ ...told, alike: true }), "About 1 h 30 min: run 7 took 50 ms per step, 11.3 GiB of GPU memory.");
  assert.equal(sayEstimate({ ...told, alike: false }), "Perhaps 1 h 30 min: run 7 took 50 ms per step, 11.3 GiB of GPU memory, with other settings of size.");
  assert.equal(sayEstimate({ run: 7, took_seconds: 0.2 }), "Run 7, the last of this kind, took 1 s.");
  assert.equal(sayEstimate(null), "");
});
