import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

import { makeOutbox } from "../../ui/static/label/outbox.js";
import { Storage, answerWith, json, makeBrowser, settle } from "./browser.js";

const NOTHING_ASKED = { want: 0, holding: [], question: "v1" };
const stored = ({ body }) => json({ results: body.events.map(({ id }) => ({ id, status: "stored" })), pairs: [] });
const away = () => Promise.reject(new TypeError("Failed to fetch"));
const box = (page) => `facereward:outbox:ada:${page}`;
const ids = (request) => request.body.events.map(({ id }) => id);

beforeEach(() => {
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"], now: 1_000_000 });
  mock.method(console, "warn", () => {});
});

function open(options = {}) {
  const browser = makeBrowser(options);
  const states = [];
  const refused = [];
  const answers = [];
  const outbox = makeOutbox("ada", {
    need: () => NOTHING_ASKED,
    onAnswer: (answer) => answers.push(answer),
    onState: (state) => states.push(state),
    onRefused: (event, error) => refused.push([event.id, error]),
  });
  return { ...browser, outbox, states, refused, answers };
}

test("answers are sent in their order and forgotten once acknowledged", async () => {
  const { outbox, storage, states } = open();
  const sent = answerWith(stored);
  for (const id of ["a", "b", "c"]) outbox.push({ id });
  assert.equal(Object.values(storage).length, 1, "kept while they wait");
  await outbox.flush();
  assert.deepEqual(sent.map(ids), [["a", "b", "c"]]);
  assert.deepEqual(Object.keys(storage), []);
  assert.deepEqual([states.at(-1).name, states.at(-1).waiting], ["saved", 0]);
});

test("an answer given while one is on its way follows it", async () => {
  const { outbox } = open();
  const sent = answerWith(stored);
  outbox.push({ id: "a" });
  const first = outbox.flush();
  outbox.push({ id: "b" });
  outbox.flush();
  await first;
  await settle();
  assert.deepEqual(sent.map(ids), [["a"], ["b"]]);
});

test("without a server the same answers are sent again, later each time", async () => {
  const { outbox, states } = open();
  const sent = answerWith(away, away, stored);
  outbox.push({ id: "a" });
  await outbox.flush();
  assert.deepEqual([states.at(-1).name, states.at(-1).waiting], ["retrying", 1]);
  mock.timers.tick(499);
  await settle();
  assert.equal(sent.length, 1);
  mock.timers.tick(1);
  await settle();
  assert.equal(sent.length, 2);
  mock.timers.tick(999);
  await settle();
  assert.equal(sent.length, 2);
  mock.timers.tick(1);
  await settle();
  assert.deepEqual(sent.map(ids), [["a"], ["a"], ["a"]]);
  assert.equal(states.at(-1).name, "saved");
});

test("a server that asks to wait is not asked before", async () => {
  const { outbox, states } = open();
  const sent = answerWith(() => json({}, 429, { "Retry-After": "3" }), stored);
  outbox.push({ id: "a" });
  await outbox.flush();
  assert.deepEqual([states.at(-1).name, states.at(-1).seconds], ["too-fast", 3]);
  mock.timers.tick(2_900);
  await outbox.flush();
  assert.equal(sent.length, 1);
  mock.timers.tick(200);
  await settle();
  assert.equal(sent.length, 2);
});

for (const status of [401, 409]) {
  test(`status ${status} says that nobody is signed in, and keeps the answers`, async () => {
    const { outbox, states, storage } = open();
    answerWith(() => json({}, status));
    outbox.push({ id: "a" });
    await outbox.flush();
    assert.deepEqual([states.at(-1).name, Object.keys(storage).length], ["signed-out", 1]);
  });
}

test("an answer that the server refuses is set aside, and the others go on", async () => {
  const { outbox, refused, states } = open();
  const word = { b: { status: "refused", error: "no such showing" } };
  answerWith(({ body }) => json({ results: body.events.map(({ id }) => ({ id, status: "stored", ...word[id] })), pairs: [] }));
  for (const id of ["a", "b", "c"]) outbox.push({ id });
  await outbox.flush();
  assert.deepEqual(refused, [["b", "no such showing"]]);
  assert.equal(states.at(-1).waiting, 0);
});

test("a request refused whole is taken apart: only the answer at fault is set aside", async () => {
  const { outbox, refused } = open();
  const sent = answerWith((request) => (ids(request).includes("b") ? json({ error: "bad" }, 422) : stored(request)));
  for (const id of ["a", "b", "c"]) outbox.push({ id });
  await outbox.flush();
  for (let turn = 0; turn < 6; turn += 1) {
    mock.timers.tick(8_000);
    await settle();
  }
  assert.deepEqual(refused.map(([id]) => id), ["b"]);
  assert.match(refused[0][1], /^422 /);
  assert.deepEqual(sent.map(ids), [["a", "b", "c"], ["a"], ["b"], ["c"]]);
});

test("the word of something else than the server acknowledges nothing", async () => {
  for (const answer of [{}, { results: [], pairs: [] }, { results: [{ id: "x", status: "stored" }], pairs: [] }]) {
    const { outbox, states, answers } = open();
    answerWith(() => json(answer));
    outbox.push({ id: "a" });
    await outbox.flush();
    assert.deepEqual([states.at(-1).waiting, answers.length], [1, 0], JSON.stringify(answer));
  }
});

test("what a closed tab left is sent before the own answers; a living tab's is not", async () => {
  const storage = new Storage();
  storage.setItem(box("closed"), JSON.stringify({ seen: 0, events: [{ id: "old" }] }));
  storage.setItem(box("living"), JSON.stringify({ seen: 1_000_000, events: [{ id: "theirs" }] }));
  storage.setItem("facereward:outbox:ben:page", JSON.stringify({ seen: 0, events: [{ id: "ben's" }] }));
  const { outbox } = open({ storage });
  const sent = answerWith(stored);
  outbox.push({ id: "new" });
  await outbox.flush();
  assert.deepEqual(sent.map(ids), [["old", "new"]]);
  assert.deepEqual(Object.keys(storage).sort(), [box("living"), "facereward:outbox:ben:page"]);
});

test("what a tab left that closes later goes before the answers that wait", async () => {
  const storage = new Storage();
  storage.setItem(box("other"), JSON.stringify({ seen: 1_000_000, events: [{ id: "old" }] }));
  const { outbox } = open({ storage });
  let sent = answerWith(away);
  outbox.push({ id: "new" });
  await outbox.flush();
  for (let turn = 0; turn < 4; turn += 1) {
    mock.timers.tick(2_000);
    await settle();
  }
  sent = answerWith(stored);
  mock.timers.tick(8_000);
  await settle();
  assert.deepEqual(sent.map(ids), [["old", "new"]]);
});

test("a browser that stores nothing is said to, and asks before the page closes", () => {
  const { outbox, states, emit } = open({ storage: new Storage(0) });
  outbox.push({ id: "a" });
  assert.equal(states.at(-1).kept, false);
  let asks = false;
  emit("beforeunload", { preventDefault: () => (asks = true) });
  assert.ok(asks);
});

test("a page that goes sends what waits, and marks its box as left", () => {
  const { outbox, storage, emit } = open();
  const sent = answerWith(stored);
  outbox.push({ id: "a" });
  const beacons = [];
  navigator.sendBeacon = (address, blob) => beacons.push(blob) > 0;
  emit("pagehide");
  assert.deepEqual([beacons.length, sent.length], [1, 0]);
  assert.equal(JSON.parse(Object.values(storage)[0]).seen, 0);
});
