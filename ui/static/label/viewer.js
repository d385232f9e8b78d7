// @ts-check
/**
 * Show two images in two frames, zoom and move them. Both always share one scale and position.
 * A scale is device pixels for each pixel of the box, the smallest that holds both candidates: 1 is pixel for pixel,
 * whatever the screen's devicePixelRatio. Each image is as large as the box allows without being stretched.
 */

/**
 * @typedef {{url: string, width: number, height: number}} Source the address of an image and its size in pixels
 * @typedef {{x: number, y: number}} Point CSS pixels from the centre of a frame
 *
 * @typedef {object} View what the server says of a pair
 * @property {string} showing
 * @property {Source} left
 * @property {Source} right
 * @property {Source | null} lq
 * @property {Source | null} hq
 *
 * @typedef {object} Entry a pair with its images loading
 * @property {View} view
 * @property {{left: HTMLImageElement, right: HTMLImageElement, lq: HTMLImageElement[] | null, hq: HTMLImageElement[] | null}} images
 * @property {Set<string>} modes in which the pair was viewed
 * @property {number} visibleMs
 * @property {number | null} [visibleSince] performance.now(); null while it is not in view
 * @property {number} [paintedTime]
 * @property {boolean} [triedAgain]
 * @property {Promise<unknown>} ready settles when both candidates can be painted
 *
 * @typedef {"lq" | "hq" | "flicker" | null} Overlay
 */

const RATIO_MS = 200;
const FEW_LINES = window.matchMedia("(max-height: 320px)"); // as in style.css
const LEVELS = [0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16];

/**
 * Make the viewer of two frames.
 * @param {HTMLElement} left @param {HTMLElement} right
 * @param {(text: string) => void} onReadout called with the scale in words whenever it changes.
 * @param {(mode: string) => void} onMode called with the mode of viewing (fit, 1:1, zoom, input, …) whenever it changes.
 */
export function makeViewer(left, right, onReadout, onMode) {
  /** @type {Entry | null} */
  let pair = null;
  /** @type {Overlay} */
  let overlay = null; // while held
  /** @type {number | null} */
  let scale = null; // null is fit
  let offset = { x: 0, y: 0 }; // CSS pixels from the centre

  const ratio = () => window.devicePixelRatio || 1;

  /** Size in image pixels of the box in which both are shown: the larger width and the larger height of the two. */
  function boxSize() {
    const { left: a, right: b } = pair.view;
    return { width: Math.max(a.width, b.width), height: Math.max(a.height, b.height) };
  }

  /** As large as the frame allows; from 100 % on in whole steps, so that pixels stay square and sharp. */
  function fitScale() {
    const { width, height } = boxSize();
    const fit = Math.min(left.clientWidth / width, left.clientHeight / height) * ratio();
    return fit >= 1 ? Math.floor(fit + 1e-6) : fit;
  }

  /** The images in the two frames, each with its size in its own pixels. */
  function contents() {
    const { images, view } = pair;
    const left = { ...view.left, image: images.left };
    const right = { ...view.right, image: images.right };
    if (overlay === "flicker") return [right, left];
    const shown = overlay;
    if (!shown || !images[shown]) return [left, right];
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
    if (!pair || !left.clientWidth) return;
    const used = scale ?? fitScale();
    const box = boxSize();
    const limitX = Math.max(0, ((box.width * used) / ratio() - left.clientWidth) / 2);
    const limitY = Math.max(0, ((box.height * used) / ratio() - left.clientHeight) / 2);
    offset = { x: clamp(offset.x, limitX), y: clamp(offset.y, limitY) };
    const shown = contents();
    [left, right].forEach((frame, place) => {
      const { image, width, height } = shown[place];
      if (frame.firstChild !== image) frame.replaceChildren(image);
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
    left.parentElement.classList.toggle("movable", limitX + limitY > 0);
    onReadout(describe(used, shown));
  }

  /** @param {number} value */
  const snap = (value) => Math.round(value * ratio()) / ratio();

  /**
   * The scales of the two images in view, in words, and their sizes where these differ.
   * @param {number} used the scale
   * @param {{width: number, height: number}[]} images
   */
  function describe(used, [left, right]) {
    const [a, b] = [left, right].map((one) => nameScale(used * enlargement(one)));
    const scales = a === b ? a : `left ${a} · right ${b}`;
    const sizes = nameSize(left) === nameSize(right) ? "" : ` · left ${nameSize(left)}, right ${nameSize(right)} px`;
    return `${scale === null ? "fit " : ""}${scales}${sizes}`;
  }

  /**
   * Zoom about a point of a frame, given in CSS pixels from its centre.
   * @param {number | null} next null to fit
   * @param {Point} point
   */
  function zoomTo(next, point = { x: 0, y: 0 }) {
    if (!pair) return;
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

  watchPointers([left, right], {
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
  new ResizeObserver(layOut).observe(left);
  watchRatio((before) => {
    offset = { x: (offset.x * before) / ratio(), y: (offset.y * before) / ratio() };
    layOut();
  });

  return {
    /**
     * Show a pair at the scale in use; a view that was held for the last pair ends.
     * @param {Entry} next
     */
    show(next) {
      pair = next;
      overlay = null;
      left.parentElement.dataset.overlay = "";
      layOut();
    },
    clear() {
      pair = null;
      left.replaceChildren();
      right.replaceChildren();
      onReadout("");
    },
    /**
     * Show the input, the ground truth or the other candidate while held; null ends it.
     * @param {Overlay} what
     */
    hold(what) {
      if (!pair || overlay === what || (what !== null && what !== "flicker" && !pair.images[what])) return;
      overlay = what;
      left.parentElement.dataset.overlay = what ?? "";
      if (what) onMode({ lq: "input", hq: "truth", flicker: "flicker" }[what]);
      layOut();
    },
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
      pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    });
    frame.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      const now = { x: event.clientX, y: event.clientY };
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
}

/** @type {(a: Point, b: Point) => number} */
const distance = (a, b) => Math.hypot(a.x - b.x, a.y - b.y);
