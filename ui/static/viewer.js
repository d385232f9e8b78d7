/**
 * The two frames: which images stand in them, at which scale, moved how far. Both always share one scale and position.
 * A scale is device pixels for each image pixel: 1 is pixel for pixel, whatever the screen's devicePixelRatio.
 */

const LEVELS = [0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16];

/**
 * Make the viewer of two frames.
 * @param {HTMLElement} left @param {HTMLElement} right
 * @param {(text: string) => void} onReadout told the scale in words whenever it changes.
 * @param {(mode: string) => void} onMode told how the pair is being looked at.
 */
export function makeViewer(left, right, onReadout, onMode) {
  let pair = null;
  let overlay = null; // "lq", "hq" or "flicker" while held
  let scale = null; // null is fit
  let offset = { x: 0, y: 0 }; // CSS pixels from the centre

  const ratio = () => window.devicePixelRatio || 1;

  /** Size in image pixels at which both are shown: the larger of the two. */
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

  function contents() {
    if (overlay === "lq" || overlay === "hq") return pair.images[overlay] ?? [pair.images.left, pair.images.right];
    if (overlay === "flicker") return [pair.images.right, pair.images.left];
    return [pair.images.left, pair.images.right];
  }

  function layOut() {
    if (!pair || !left.clientWidth) return;
    const used = scale ?? fitScale();
    const { width, height } = boxSize();
    const w = (width * used) / ratio();
    const h = (height * used) / ratio();
    const limitX = Math.max(0, (w - left.clientWidth) / 2);
    const limitY = Math.max(0, (h - left.clientHeight) / 2);
    offset = { x: clamp(offset.x, limitX), y: clamp(offset.y, limitY) };
    [left, right].forEach((frame, place) => {
      const image = contents()[place];
      if (frame.firstChild !== image) frame.replaceChildren(image);
      const own = (image.naturalWidth && w / image.naturalWidth) * ratio();
      image.style.imageRendering = own > 1 ? "pixelated" : "auto";
      image.style.width = `${w}px`;
      image.style.height = `${h}px`;
      // Whole device pixels, else 1:1 would be smeared over two.
      image.style.left = `${snap((frame.clientWidth - w) / 2 + offset.x)}px`;
      image.style.top = `${snap((frame.clientHeight - h) / 2 + offset.y)}px`;
    });
    left.parentElement.classList.toggle("movable", limitX + limitY > 0);
    onReadout(describe(used));
  }

  const snap = (value) => Math.round(value * ratio()) / ratio();

  function describe(used) {
    const percent = `${Math.round(used * 100)} %`;
    const how = used < 1 ? `${percent} smoothed` : used === 1 ? "1:1 pixels" : `${percent} pixels`;
    const { left: a, right: b } = pair.view;
    const sizes = a.width === b.width ? "" : ` · left is ${a.width} px wide, right ${b.width} px, shown alike`;
    return (scale === null ? `fit ${how}` : how) + sizes;
  }

  /** Zoom about a point of a frame, given in CSS pixels from its centre. */
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

  return {
    /** Put a pair into the frames, whole and at the scale in use; nothing of the last pair's holds on. */
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
    /** Show the input, the ground truth or the other candidate while held; null ends it. */
    hold(what) {
      if (!pair || overlay === what || (what !== null && what !== "flicker" && !pair.images[what])) return;
      overlay = what;
      left.parentElement.dataset.overlay = what ?? "";
      if (what) onMode({ lq: "input", hq: "truth", flicker: "flicker" }[what]);
      layOut();
    },
    held: () => overlay !== null,
    toggleScale: (wanted) => zoomTo(scale === wanted ? null : wanted),
    fit: () => zoomTo(null),
    zoomIn: () => step(+1),
    zoomOut: () => step(-1),
    /** The mode in which a new pair starts. */
    mode: () => (scale === null ? "fit" : scale === 1 ? "1:1" : "zoom"),
  };
}

const clamp = (value, limit) => Math.min(limit, Math.max(-limit, value));

/** Wheel, drag and pinch over any of the frames; points are CSS pixels from the frame's centre. */
function watchPointers(frames, { onWheel, onDrag, onPinch }) {
  const pointers = new Map();
  for (const frame of frames) {
    const fromCentre = (x, y) => {
      const box = frame.getBoundingClientRect();
      return { x: x - box.left - box.width / 2, y: y - box.top - box.height / 2 };
    };
    frame.addEventListener(
      "wheel",
      (event) => {
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
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      frame.addEventListener(end, (event) => pointers.delete(event.pointerId));
    }
  }
}

const distance = (a, b) => Math.hypot(a.x - b.x, a.y - b.y);
