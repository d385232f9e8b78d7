import assert from "node:assert/strict";
import { test } from "node:test";

import { duration, size } from "../../ui/static/common/words.js";

test("durations carry over where they are rounded", () => {
  assert.deepEqual(
    [null, -1, 0, 59.4, 59.7, 3_599.6, 5_400, 7_199, 172_790, 200_000].map(duration),
    ["", "", "0 s", "59 s", "1 min 0 s", "1 h 0 min", "1 h 30 min", "2 h 0 min", "2 d 0 h", "2 d 8 h"],
  );
});

test("sizes have three digits", () => {
  assert.deepEqual(
    [0, 999, 1_000, 999_999, 12_345_678, 999_500_000, 5e15].map(size),
    ["0 B", "999 B", "1.00 kB", "1.00 MB", "12.3 MB", "1.00 GB", "5000 TB"],
  );
});
