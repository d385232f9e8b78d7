// @ts-check
/**
 * Show two images or more in a frame each, zoom and move them. All always share one scale and position.
 * A scale is device pixels for each pixel of the box, the smallest that holds all candidates: 1 is pixel for pixel,
 * whatever the screen's devicePixelRatio. Each image is as large as the box allows without being stretched.
 */

import { chooseColumns } from "./grid.js";

/**
 * @typedef {{url: string, width: number, height: number}} Source the address of an image and its size in pixels
 * @typedef {{x: number, y: number}} Point CSS pixels from the centre of a frame
 *
 * @typedef {object} View what the server says of a pair, which has left and right, or of a task, which has images
 * @property {string} showing
 * @property {Source} [left]
 * @property {Source} [right]
 * @property {Source[]} [images] in their places on the screen
 * @property {"best" | "best_worst" | "order"} [asked] of a task
 * @property {Source | null} lq
 * @property {Source | null} hq
 *
 * @typedef {object} Entry a pair or task with its images loading
 * @property {View} view
 * @property {{candidates: HTMLImageElement[], lq: HTMLImageElement[] | null, hq: HTMLImageElement[] | null}} images
 * @property {Set<string>} modes in which it was viewed
 * @property {number} visibleMs
 * @property {number | null} [visibleSince] performance.now(); null while it is not in view
 * @property {number} [paintedTime]
 * @property {boolean} [triedAgain]
 * @property {Promise<unknown>} ready settles when all candidates can be painted
 *
 * @typedef {"lq" | "hq" | "flicker" | null} Overlay
 */

const RATIO_MS = 200;
const FEW_LINES = window.matchMedia("(max-height: 320px)"); // as in style.css
const LEVELS = [0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16];

const SLOP = { mouse: 4, pen: 6, touch: 10 }; // CSS pixels that a pointer may move and still mean where it went down

/**
 * The candidates of a pair or task in their places.
 * @param {View} view
 */
export const candidatesOf = ({ left, right, images }) => images ?? [left, right];

/**
 * Make the viewer of a stage: two frames of a pair, or a grid of frames of a task.
 * @param {HTMLElement} stage
 * @param {HTMLElement[]} sides the frames of a pair
 * @param {HTMLElement} grid
 * @param {HTMLElement[]} places the frames of a task of the most candidates
 * @param {(text: string) => void} onReadout called with the scale in words whenever it changes.
 * @param {(mode: string) => void} onMode called with the mode of viewing (fit, 1:1, zoom, input, …) whenever it changes.
 */
export function makeViewer(stage, sides, grid, places, onReadout, onMode) {
  /** @type {Entry | null} */
  let entry = null;
  let frames = sides; // in use
  /** @type {Overlay} */
  let overlay = null; // while held
  /** @type {HTMLImageElement[]} */
  let flickered = []; // what the frames of a grid show meanwhile
  let reference = 0; // its place
  /** @type {number | null} */
  let scale = null; // null is fit
  let offset = { x: 0, y: 0 }; // CSS pixels from the centre

  const ratio = () => window.devicePixelRatio || 1;

  /** Size in image pixels of the box in which all are shown: the largest width and the largest height of them. */
  function boxSize() {
    const all = candidatesOf(entry.view);
    return { width: Math.max(...all.map(({ width }) => width)), height: Math.max(...all.map(({ height }) => height)) };
  }

  /** Give a task's frames the rows and columns that fit the window. */
  function arrange() {
    if (frames === sides) return;
    const columns = chooseColumns(frames.length, { width: grid.clientWidth, height: grid.clientHeight }, boxSize());
    grid.style.setProperty("--columns", String(columns));
    grid.style.setProperty("--rows", String(Math.ceil(frames.length / columns)));
  }

  /** As large as the frame allows; from 100 % on in whole steps, so that pixels stay square and sharp. */
  function fitScale() {
    const { width, height } = boxSize();
    const fit = Math.min(frames[0].clientWidth / width, frames[0].clientHeight / height) * ratio();
    return fit >= 1 ? Math.floor(fit + 1e-6) : fit;
  }

  /** The images in the frames, each with its size in its own pixels. */
  function contents() {
    const { images, view } = entry;
    const own = candidatesOf(view).map((source, place) => ({ ...source, image: images.candidates[place] }));
    if (overlay === "flicker") {
      return frames === sides ? [...own].reverse() : flickered.map((image) => ({ ...own[reference], image }));
    }
    const shown = overlay;
    if (!shown || !images[shown]) return own;
    return images[shown].map((image) => ({ ...view[shown], image }));
  }

  /**
   * Pixels of the box for each pixel of an image: 1 for the larger candidate, and for an input of its size.
   * @param {{width: number, height: number}} image
   */
  function enlargement({ width, height }) {
    const box = boxSize();
    return Math.min(box.width / width, box.height / height);
  }

  function layOut() {
    if (!entry) return;
    arrange();
    const [{ clientWidth, clientHeight }] = frames;
    if (!clientWidth) return;
    const used = scale ?? fitScale();
    const box = boxSize();
    const limitX = Math.max(0, ((box.width * used) / ratio() - clientWidth) / 2);
    const limitY = Math.max(0, ((box.height * used) / ratio() - clientHeight) / 2);
    offset = { x: clamp(offset.x, limitX), y: clamp(offset.y, limitY) };
    const shown = contents();
    frames.forEach((frame, place) => {
      const { image, width, height } = shown[place];
      if (frame.firstElementChild !== image) putImage(frame, image);
      const own = used * enlargement(shown[place]);
      const w = (width * own) / ratio();
      const h = (height * own) / ratio();
      image.style.imageRendering = own > 1 ? "pixelated" : "auto";
      image.style.width = `${w}px`;
      image.style.height = `${h}px`;
      // Whole device pixels, else 1:1 would be smeared over two.
      image.style.left = `${snap((frame.clientWidth - w) / 2 + offset.x)}px`;
      image.style.top = `${snap((frame.clientHeight - h) / 2 + offset.y)}px`;
    });
    stage.classList.toggle("movable", limitX + limitY > 0);
    onReadout(describe(used, shown));
  }

  /** @param {number} value */
  const snap = (value) => Math.round(value * ratio()) / ratio();

  /**
   * The scales of the images in view, in words, and their sizes where these differ.
   * @param {number} used the scale
   * @param {{width: number, height: number}[]} images
   */
  function describe(used, images) {
    const scales = sayOfEach(images.map((one) => nameScale(used * enlargement(one))));
    const [first, ...others] = images.map(nameSize);
    const sizes = others.every((size) => size === first) ? "" : ` · ${sayOfEach([first, ...others], ", ")} px`;
    return `${scale === null ? "fit " : ""}${scales}${sizes}`;
  }

  /**
   * One word for all where it is the same of all, else one for each with its place.
   * @param {string[]} words
   */
  function sayOfEach(words, joint = " · ") {
    if (words.every((word) => word === words[0])) return words[0];
    return words.map((word, place) => `${frames === sides ? ["left", "right"][place] : `${place + 1}:`} ${word}`).join(joint);
  }

  /**
   * Zoom about a point of a frame, given in CSS pixels from its centre.
   * @param {number | null} next null to fit
   * @param {Point} point
   */
  function zoomTo(next, point = { x: 0, y: 0 }) {
    if (!entry) return;
    const before = scale ?? fitScale();
    const after = next ?? fitScale();
    offset = {
      x: point.x - ((point.x - offset.x) * after) / before,
      y: point.y - ((point.y - offset.y) * after) / before,
    };
    scale = next;
    onMode(next === null ? "fit" : next === 1 ? "1:1" : "zoom");
    layOut();
  }

  /**
   * @param {number} direction +1 or -1
   * @param {Point} [point]
   */
  function step(direction, point) {
    const now = scale ?? fitScale();
    const levels = direction > 0 ? LEVELS.filter((level) => level > now + 1e-6) : LEVELS.filter((level) => level < now - 1e-6);
    const next = direction > 0 ? levels[0] : levels.at(-1);
    if (next === undefined) return;
    zoomTo(direction < 0 && next < fitScale() ? null : next, point);
  }

  const pointers = watchPointers([...sides, ...places], {
    onWheel: (direction, point) => step(direction, point),
    onDrag: (x, y) => {
      offset = { x: offset.x + x, y: offset.y + y };
      layOut();
    },
    onPinch: (factor, point) => {
      const next = Math.min(16, Math.max(fitScale(), (scale ?? fitScale()) * factor));
      zoomTo(next === fitScale() ? null : next, point);
    },
  });
  const observer = new ResizeObserver(layOut);
  for (const frame of [sides[0], grid]) observer.observe(frame);
  watchRatio((before) => {
    offset = { x: (offset.x * before) / ratio(), y: (offset.y * before) / ratio() };
    layOut();
  });

  return {
    /**
     * Show a pair or task at the scale in use; a view that was held for the last one ends.
     * @param {Entry} next
     */
    show(next) {
      entry = next;
      overlay = null;
      stage.dataset.overlay = "";
      const { images } = next.view;
      frames = images ? places.slice(0, images.length) : sides;
      for (const frame of sides) frame.hidden = frames !== sides;
      grid.hidden = frames === sides;
      const inGrid = frames === sides ? [] : frames;
      if (grid.childElementCount !== inGrid.length) grid.replaceChildren(...inGrid); // else the focus stays
      layOut();
    },
    clear() {
      entry = null;
      for (const frame of [...sides, ...places]) frame.querySelector("img")?.remove();
      onReadout("");
    },
    /**
     * Show the input, the ground truth or another candidate while held; null ends it.
     * @param {Overlay} what
     * @param {number} [by] the place of the candidate that a task's others are compared with
     */
    hold(what, by = 0) {
      if (!entry || overlay === what || (what !== null && what !== "flicker" && !entry.images[what])) return;
      overlay = what;
      stage.dataset.overlay = what ?? "";
      reference = by;
      flickered = [];
      if (what === "flicker" && frames !== sides) {
        const image = entry.images.candidates[by];
        flickered = frames.map((_, place) => (place === by ? image : /** @type {HTMLImageElement} */ (image.cloneNode())));
      }
      frames.forEach((frame, place) => frame.classList.toggle("reference", flickered.length > 0 && place === by));
      if (what) onMode({ lq: "input", hq: "truth", flicker: "flicker" }[what]);
      layOut();
    },
    /** Whether the pointer that went down last moved or had company: its click chooses nothing. */
    dragged: () => pointers.moved(),
    held: () => overlay !== null,
    /** @param {number} wanted */
    toggleScale: (wanted) => zoomTo(scale === wanted ? null : wanted),
    fit: () => zoomTo(null),
    zoomIn: () => step(+1),
    zoomOut: () => step(-1),
    /** The mode in which a new pair starts. */
    mode: () => (scale === null ? "fit" : scale === 1 ? "1:1" : "zoom"),
  };
}

/**
 * Call `onChange` with the old devicePixelRatio whenever it changes, as when the window moves to another screen. Polled,
 * since neither `resize` nor the media query `resolution` fires for every change.
 * @param {(before: number) => void} onChange
 */
function watchRatio(onChange) {
  let before = window.devicePixelRatio;
  setInterval(() => {
    if (window.devicePixelRatio === before) return;
    onChange(before);
    before = window.devicePixelRatio;
  }, RATIO_MS);
}

/**
 * Put an image into a frame in the place of the one there, below what marks the frame.
 * @param {HTMLElement} frame
 * @param {HTMLImageElement} image
 */
function putImage(frame, image) {
  const before = frame.querySelector("img");
  if (before) before.replaceWith(image);
  else frame.prepend(image);
}

/** @param {{width: number, height: number}} image */
const nameSize = ({ width, height }) => `${width} × ${height}`;

/**
 * "1:1 pixels" only of a scale that is exactly that.
 * @param {number} scale
 */
function nameScale(scale) {
  if (Math.abs(scale - 1) < 1e-9) return "1:1 pixels";
  return `${Math.round(scale * 100)} % ${scale < 1 ? "smoothed" : "pixels"}`;
}

/** @type {(value: number, limit: number) => number} */
const clamp = (value, limit) => Math.min(limit, Math.max(-limit, value));

/**
 * Wheel, drag and pinch over any of the frames; points are CSS pixels from the frame's centre.
 * @param {HTMLElement[]} frames
 * @param {{onWheel: (direction: number, point: Point) => void, onDrag: (x: number, y: number) => void, onPinch: (factor: number, point: Point) => void}} on
 */
function watchPointers(frames, { onWheel, onDrag, onPinch }) {
  /** @type {Map<number, Point>} */
  const pointers = new Map();
  let start = { x: 0, y: 0 };
  let moved = false;
  for (const frame of frames) {
    const fromCentre = (/** @type {number} */ x, /** @type {number} */ y) => {
      const box = frame.getBoundingClientRect();
      return { x: x - box.left - box.width / 2, y: y - box.top - box.height / 2 };
    };
    frame.addEventListener(
      "wheel",
      (event) => {
        if (FEW_LINES.matches && !event.ctrlKey) return; // the page scrolls, and the images fill it
        event.preventDefault();
        onWheel(event.deltaY < 0 ? +1 : -1, fromCentre(event.clientX, event.clientY));
      },
      { passive: false },
    );
    frame.addEventListener("pointerdown", (event) => {
      frame.setPointerCapture(event.pointerId);
      moved = pointers.size > 0;
      start = { x: event.clientX, y: event.clientY };
      pointers.set(event.pointerId, start);
    });
    frame.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      const now = { x: event.clientX, y: event.clientY };
      moved ||= distance(now, start) > (SLOP[/** @type {keyof typeof SLOP} */ (event.pointerType)] ?? SLOP.touch);
      const others = [...pointers.entries()].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
      pointers.set(event.pointerId, now);
      if (others.length === 0) onDrag(now.x - before.x, now.y - before.y);
      else if (others.length === 1) {
        const [other] = others;
        const factor = distance(now, other) / Math.max(1, distance(before, other));
        onPinch(factor, fromCentre((now.x + other.x) / 2, (now.y + other.y) / 2));
      }
    });
    for (const end of /** @type {const} */ (["pointerup", "pointercancel", "lostpointercapture"])) {
      frame.addEventListener(end, (event) => pointers.delete(event.pointerId));
    }
  }
  return { moved: () => moved };
}

/** @type {(a: Point, b: Point) => number} */
const distance = (a, b) => Math.hypot(a.x - b.x, a.y - b.y);
