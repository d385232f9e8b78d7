// @ts-check
/** Choose where and when a run runs: its device, its processes, and the runs that it waits for. */

import { make } from "../common/dom.js";
import { errorLine, labelled, makeCheck, showError } from "./controls.js";

/** @import { Asked, Kind } from "./address.js" */

const MOST_PROCESSES = 64;

/** @param {() => void} onChange */
export function makePlace(onChange) {
  const device = labelled("Runs on", make("select", { on: { change: onDevice } }));
  const deviceError = errorLine();
  const number = { type: "number", min: "1", max: String(MOST_PROCESSES), step: "1", value: "1" };
  const processes = labelled("Processes", make("input", { ...number, on: { input: onChange } }));
  const after = make("details");
  const afterError = errorLine();
  let trains = false;
  /** @type {HTMLInputElement[]} */
  let boxes = [];

  function onDevice() {
    suggestProcesses();
    onChange();
  }

  /** One process per GPU, where several GPUs are chosen. */
  function suggestProcesses() {
    if (trains) processes.control.value = String(device.control.value.split(",").length);
  }

  return {
    elements: [device.element, deviceError, processes.element, after],
    /**
     * Show what a kind of run can be asked for.
     * @param {Kind} kind
     * @param {{devices: {value: string, words: string}[], live: {id: number, kind: string, state: string}[]}} known
     * @param {Asked} asked
     */
    fill(kind, known, asked) {
      trains = kind.trains;
      const choices = known.devices.map((one) => new Option(one.words, one.value));
      device.control.replaceChildren(...choices, new Option("now, without queueing", ""));
      device.control.value = asked.device ?? usualDevice(kind, known);
      if (device.control.selectedIndex < 0) device.control.value = known.devices[0].value;
      processes.element.hidden = !trains;
      processes.control.value = String(trains ? (asked.processes ?? 1) : 1);
      if (asked.processes === undefined) suggestProcesses();
      const words = new Map((asked.after ?? []).map((id) => [id, `run ${id}`]));
      for (const run of known.live) words.set(run.id, `run ${run.id}: ${run.kind}, ${run.state}`);
      const checks = [...words].map(([value, text]) => makeCheck({ value, words: text, checked: Boolean(asked.after?.includes(value)) }, onChange));
      boxes = checks.map((check) => check.box);
      after.replaceChildren(make("summary", {}, "Wait for other runs"), ...checks.map((check) => check.element), afterError);
      after.hidden = !words.size;
      after.open = Boolean(asked.after?.length);
    },
    collect: () => ({
      device: device.control.value,
      processes: Math.min(MOST_PROCESSES, Math.max(1, Math.round(Number(processes.control.value)) || 1)),
      after: boxes.filter((box) => box.checked).map((box) => Number(box.value)),
    }),
    /** @param {Record<string, string>} errors by 'device', 'processes' and 'after' */
    setErrors(errors) {
      showError(deviceError, errors.device ?? errors.processes, device.control);
      showError(afterError, errors.after, after);
    },
  };
}

/**
 * Where a kind of run runs unless something else is chosen.
 * @param {Kind} kind
 * @param {{devices: {value: string}[]}} known
 */
export const usualDevice = (kind, known) => (kind.needs_device ? known.devices[0].value : "");
