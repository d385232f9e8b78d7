// @ts-check
/** Show what a form comes to: the command, an estimate, what is wrong, and the button that starts it. */

import { make } from "../common/dom.js";
import { duration } from "../common/words.js";
import { alert, linkRuns, note, showCommand, smallButton } from "./controls.js";

/**
 * @typedef {object} Estimate from an earlier run of the kind
 * @property {number} run
 * @property {number} [gpu_gib]
 * @property {number} [seconds] that it will take
 * @property {number} [seconds_a_step]
 * @property {boolean} [alike] whether the earlier run had the same settings of size
 * @property {number} [took_seconds]
 * @property {number} [done]
 */

/** The plan of the form whose id is `formId`. @param {string} formId */
export function makePlan(formId) {
  const command = make("pre", { className: "tr-command", tabIndex: 0, "aria-label": "The command" });
  const copy = smallButton("Copy", async () => {
    await copyText(command);
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
  const estimate = note("");
  const notes = make("div");
  const faults = make("div", { "aria-live": "polite" });
  const start = make("button", { type: "submit", form: formId, className: "tr-primary" }, "Start");
  const done = make("div", { role: "status" });
  return {
    elements: [make("div", { className: "tr-head" }, make("h4", {}, "The command"), copy), command, estimate, notes, faults, start, done],
    start,
    /** @param {{command?: string, estimate?: Estimate, notes?: string[]}} answer */
    show(answer) {
      showCommand(command, answer.command ?? "");
      estimate.textContent = sayEstimate(answer.estimate);
      notes.replaceChildren(...(answer.notes ?? []).map(note));
    },
    /**
     * @param {Record<string, string>} errors by place; '' for the whole form
     * @param {(place: string) => string} labelOf
     */
    setErrors(errors, labelOf) {
      const places = Object.keys(errors);
      const others = places.filter((place) => place).map(labelOf);
      start.disabled = places.length > 0;
      faults.replaceChildren(
        ...(errors[""] ? [alert(errors[""])] : []),
        ...(others.length ? [note(`Before it can start: ${others.join(", ")}.`)] : []),
      );
    },
    /** @param {(Node | string)[]} words */
    say: (...words) => done.replaceChildren(...words),
    /** @param {{run: number, waits?: string}} answer */
    sayStarted({ run, waits }) {
      const [link] = linkRuns([run], "Run");
      done.replaceChildren(make("p", { className: "tr-done" }, link, waits ? ` is asked for; it ${waits}.` : " was started."));
      /** @type {HTMLElement} */ (link).focus();
    },
  };
}

/** @param {HTMLElement} from */
async function copyText(from) {
  try {
    await navigator.clipboard.writeText(from.textContent);
  } catch {
    getSelection().selectAllChildren(from); // no clipboard without https: mark it, so that Ctrl+C takes it
    document.execCommand("copy");
  }
}

/**
 * How long a run like an earlier one takes, and how much memory.
 * @param {Estimate | null | undefined} told
 */
export function sayEstimate(told) {
  if (!told) return "";
  const memory = told.gpu_gib ? `, ${told.gpu_gib.toFixed(1)} GiB of GPU memory` : "";
  if (told.seconds !== undefined) {
    const pace = `run ${told.run} took ${sayPace(told.seconds_a_step)}${memory}`;
    return told.alike
      ? `About ${sayTime(told.seconds)}: ${pace}.`
      : `Perhaps ${sayTime(told.seconds)}: ${pace}, with other settings of size.`;
  }
  if (told.took_seconds === undefined) return "";
  return `Run ${told.run}, the last of this kind, took ${sayTime(told.took_seconds)}${told.done ? ` for ${told.done.toLocaleString()}` : ""}${memory}.`;
}

/** @param {number} seconds */
const sayPace = (seconds) => (seconds < 0.1 ? `${(1000 * seconds).toFixed(0)} ms per step` : `${seconds.toPrecision(2)} s per step`);

/** @param {number} seconds */
const sayTime = (seconds) => duration(Math.max(1, seconds));
