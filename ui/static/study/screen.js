// @ts-check
/** Look at the window of a participant: how large it is, how far it is zoomed, how dark a grey it still shows. */

/**
 * @typedef {object} Needs
 * @property {number} min_width_px
 * @property {number} min_height_px
 * @property {number} min_device_pixel_ratio
 * @property {boolean} needs_zoom_100
 *
 * @typedef {{width_px: number, height_px: number, device_pixel_ratio: number, zoom: number | null}} Seen
 * @typedef {{what: string, needed: string, here: string, fits: boolean}} Fact
 * @typedef {Pick<Window, "innerWidth" | "innerHeight" | "outerWidth" | "outerHeight">} Sizes
 */

/** Greys of the strip's fields, of 255; the darkest are lost on a screen that is too dark or faces the light. */
const GREYS = [90, 70, 50, 40, 30, 25, 20, 15, 10, 5];

/** Zooms that browsers offer. */
const ZOOMS = [0.25, 0.3, 1 / 3, 0.5, 0.67, 0.75, 0.8, 0.85, 0.9, 1, 1.1, 1.15, 1.2, 1.25, 1.33, 1.5, 1.7, 1.75, 2, 2.4, 2.5, 3, 4, 5];
const TOLERANCE = 0.06; // as the server's
const MOST_BORDER_PX = 24; // what a window is wider than its page
const MOST_BARS_PX = 320; // what it is higher: tabs, address, bookmarks

/**
 * The zoom of the page, null where the sizes fit none, as beside an open side bar. Browsers tell no zoom; but the size
 * of the window stays when the page's pixels become larger.
 * @param {Sizes} sizes
 */
export function estimateZoom({ innerWidth, innerHeight, outerWidth, outerHeight }) {
  if (![innerWidth, innerHeight, outerWidth, outerHeight].every((size) => size > 0)) return null;
  const fitting = ZOOMS.filter((zoom) => {
    const border = outerWidth - innerWidth * zoom;
    const bars = outerHeight - innerHeight * zoom;
    return border >= -2 * zoom && border <= MOST_BORDER_PX && bars >= -2 * zoom && bars <= MOST_BARS_PX;
  });
  if (fitting.includes(1)) return 1; // in a small window several fit
  return fitting[0] ?? null;
}

/** @returns {Seen} */
export function look() {
  const view = window.visualViewport;
  const pinched = view?.scale ?? 1;
  const held = matchMedia("(pointer: coarse) and (hover: none)").matches; // a phone's window tells no zoom but the pinched
  const zoom = Math.abs(pinched - 1) > 0.01 || held ? pinched : estimateZoom(window);
  return {
    width_px: Math.round(pinched === 1 ? window.innerWidth : view.width * pinched), // browsers disagree on the first
    height_px: Math.round(pinched === 1 ? window.innerHeight : view.height * pinched),
    device_pixel_ratio: Math.round(window.devicePixelRatio * 1000) / 1000,
    zoom: zoom === null ? null : Math.round(zoom * 100) / 100,
  };
}

/**
 * What is needed beside what there is; needs that are none are left out.
 * @param {Needs} needs
 * @param {Seen} seen
 * @returns {Fact[]}
 */
export function compare(needs, seen) {
  const { min_width_px: width, min_height_px: height, min_device_pixel_ratio: ratio } = needs;
  const percent = seen.zoom === null ? "not known" : `${Math.round(seen.zoom * 100)} %`;
  const facts = [
    width > 0 && { what: "Width of the window", needed: `${width} px or more`, here: `${seen.width_px} px`, fits: seen.width_px >= width },
    height > 0 && { what: "Height of the window", needed: `${height} px or more`, here: `${seen.height_px} px`, fits: seen.height_px >= height },
    ratio > 0 && {
      what: "Screen pixels in each pixel of the page",
      needed: `${ratio} or more`,
      here: String(seen.device_pixel_ratio),
      fits: seen.device_pixel_ratio >= ratio - TOLERANCE,
    },
    needs.needs_zoom_100 && { what: "Zoom", needed: "100 %", here: percent, fits: seen.zoom === null || Math.abs(seen.zoom - 1) <= TOLERANCE },
  ];
  return /** @type {Fact[]} */ (facts.filter(Boolean));
}

/**
 * What a person can do about what is lacking.
 * @param {Needs} needs
 * @param {Seen} seen
 * @returns {string} "" where nothing is
 */
export function advise(needs, seen) {
  const lacking = compare(needs, seen).filter(({ fits }) => !fits);
  if (!lacking.length) return "";
  const zoomed = lacking.some(({ what }) => what === "Zoom");
  const narrow = seen.width_px < needs.min_width_px && seen.height_px >= needs.min_width_px;
  const steps = [
    zoomed && "set the zoom to 100 % (Ctrl and 0, on a Mac ⌘ and 0, on a phone two fingers)",
    lacking.some(({ what }) => /window/.test(what)) && "make the window as large as the screen (F11 hides its bars)",
    narrow && "or turn the phone or tablet on its side",
    lacking.some(({ what }) => /Screen/.test(what)) && "move the window to a sharper screen",
  ];
  return `Please ${steps.filter(Boolean).join(", ")}. This page looks again by itself.`;
}

/**
 * Draw so many grey fields on black.
 * @param {HTMLCanvasElement} canvas
 * @param {number} fields
 */
export function drawStrip(canvas, fields) {
  const { width, height } = canvas;
  const drawn = canvas.getContext("2d");
  drawn.fillStyle = "#000";
  drawn.fillRect(0, 0, width, height);
  const pitch = width / fields;
  GREYS.slice(-fields).forEach((grey, place) => {
    drawn.fillStyle = `rgb(${grey} ${grey} ${grey})`;
    drawn.fillRect(Math.round((place + 0.2) * pitch), Math.round(height * 0.2), Math.round(0.6 * pitch), Math.round(height * 0.6));
  });
}
