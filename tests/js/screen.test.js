// Zoom and fitness of a participant's window, by the sizes that browsers tell.

import assert from "node:assert/strict";
import test from "node:test";

import { advise, compare, estimateZoom } from "../../ui/static/study/screen.js";

const NEEDS = { min_width_px: 900, min_height_px: 500, min_device_pixel_ratio: 0, needs_zoom_100: true };

/** A window on a desktop: borders of 16 px, bars of 120 px. */
const windowAt = (zoom, width = 1536, height = 864) => ({
  outerWidth: width,
  outerHeight: height,
  innerWidth: Math.round((width - 16) / zoom),
  innerHeight: Math.round((height - 120) / zoom),
});

test("the zoom is read from the sizes of window and page", () => {
  for (const zoom of [0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2]) assert.equal(estimateZoom(windowAt(zoom)), zoom);
  for (const zoom of [0.9, 1.1]) assert.equal(estimateZoom(windowAt(zoom, 420, 700)), zoom, "in a narrow window too");
  assert.equal(estimateZoom({ innerWidth: 1280, innerHeight: 720, outerWidth: 1280, outerHeight: 720 }), 1, "headless");
});

test("a side bar or missing sizes are no zoom", () => {
  assert.equal(estimateZoom({ innerWidth: 1200, innerHeight: 740, outerWidth: 1536, outerHeight: 864 }), null);
  assert.equal(estimateZoom({ innerWidth: 390, innerHeight: 844, outerWidth: 0, outerHeight: 0 }), null);
});

test("what is lacking is said beside what there is, and how to mend it", () => {
  const small = { width_px: 390, height_px: 844, device_pixel_ratio: 3, zoom: null };
  assert.deepEqual(
    compare(NEEDS, small).map(({ here, fits }) => [here, fits]),
    [["390 px", false], ["844 px", true], ["not known", true]],
  );
  assert.match(advise(NEEDS, { ...small, height_px: 950 }), /turn the phone/);
  const zoomed = { width_px: 1400, height_px: 900, device_pixel_ratio: 1, zoom: 1.25 };
  assert.match(advise(NEEDS, zoomed), /zoom to 100 %/);
  assert.equal(advise({ ...NEEDS, needs_zoom_100: false }, zoomed), "");
  assert.match(advise({ ...NEEDS, min_device_pixel_ratio: 2 }, { ...zoomed, zoom: 1 }), /sharper screen/);
});
