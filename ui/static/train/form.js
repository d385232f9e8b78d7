// @ts-check
/** Make the form of a kind of run: preset, inputs and settings. */

import { make } from "../common/dom.js";
import { errorLine, labelled, showError } from "./controls.js";
import { makeField, makeInput } from "./fields.js";

/** @import { Asked, Kind, Value } from "./address.js" */

/** @type {Record<string, string>} titles of a config's tables */
const TABLES = {
  options: "More settings",
  model: "Model",
  algorithm: "Algorithm",
  train: "Training",
  trajectory: "Trajectory",
  loss: "Loss",
  live_reward: "Live reward model",
  degradation: "Degradation",
};
const OWN_FILE = "your own file"; // in the place of a preset's name

/**
 * The form of a kind, with what is asked for filled in.
 * @param {Kind} kind
 * @param {Asked} asked
 * @param {() => void} onChange
 */
export function makeForm(kind, asked, onChange) {
  const chosen = asked.preset || kind.preset;
  const defaults = kind.presets[chosen] ?? Object.fromEntries(kind.fields.map((field) => [field.key, field.default]));
  const preset = Object.keys(kind.presets).length ? makePreset(kind, chosen, setDefaults, onChange) : null;
  const inputs = new Map(kind.inputs.map((spec) => [spec.name, makeInput(spec, asked.inputs?.[spec.name] ?? [], onChange)]));
  const fields = new Map(
    kind.fields.map((spec) => [spec.key, makeField(spec, defaults[spec.key], asked.values?.[spec.key], onChange)]),
  );
  const inputsWhere = (/** @type {boolean} */ folded) => kind.inputs.filter((one) => one.folded === folded).map((one) => inputs.get(one.name));
  const folds = makeFolds();

  /**
   * Take another preset: fields that were not changed follow it, the others stay.
   * @param {Record<string, Value>} values
   */
  function setDefaults(values) {
    for (const [key, field] of fields) field.setDefault(values[key]);
  }

  /** The other fields, table by table, folded. */
  function makeFolds() {
    const found = [];
    const more = inputsWhere(true);
    if (more.length) found.push(makeFold("More to start from", more, "tr-inputs"));
    const folded = kind.fields.filter((one) => !one.shown);
    for (const table of new Set(folded.map((one) => one.table))) {
      const own = folded.filter((one) => one.table === table).map((one) => fields.get(one.key));
      found.push(makeFold(TABLES[table] ?? table, own, "tr-grid"));
    }
    return found;
  }

  const shown = kind.fields.filter((one) => one.shown).map((one) => fields.get(one.key));
  return {
    elements: [
      ...(preset ? [preset.element] : []),
      make("div", { className: "tr-inputs" }, ...inputsWhere(false).map((one) => one.element)),
      make("div", { className: "tr-grid" }, ...shown.map((one) => one.element)),
      ...folds.map((fold) => fold.element),
    ],
    setDefaults,
    /** What is filled in: of the fields those that differ from the preset, of the inputs those that are not empty. */
    collect() {
      const changed = [...fields].filter(([, field]) => field.isChanged());
      const given = [...inputs].filter(([, input]) => input.values().length);
      return {
        kind: kind.kind,
        preset: preset?.value() ?? "",
        inputs: Object.fromEntries(given.map(([name, input]) => [name, input.values()])),
        values: Object.fromEntries(changed.map(([key, field]) => [key, field.value()])),
      };
    },
    /** @param {Record<string, string>} errors by key of a field, name of an input, or 'preset' */
    setErrors(errors) {
      for (const [key, field] of fields) field.setError(errors[key]);
      for (const [name, input] of inputs) input.setError(errors[name]);
      preset?.setError(errors.preset);
      for (const fold of folds) fold.showCounts();
    },
    /** @param {string} place key of a field or name of an input */
    labelOf: (place) => (fields.get(place) ?? inputs.get(place))?.label ?? place,
  };
}

/**
 * Controls behind a line that says how many of them are changed and how many are wrong.
 * @param {string} title
 * @param {{element: HTMLElement, isChanged: () => boolean, hasError: () => boolean}[]} controls
 * @param {string} className
 */
function makeFold(title, controls, className) {
  const count = make("span", { className: "fr-note" });
  const body = make("div", { className }, ...controls.map((control) => control.element));
  const element = make("details", {}, make("summary", {}, title, " ", count), body);
  return {
    element,
    showCounts() {
      const changed = controls.filter((control) => control.isChanged()).length;
      const wrong = controls.filter((control) => control.hasError()).length;
      const all = title.startsWith("More") ? "" : `${controls.length} more`;
      count.textContent = [all, changed && `${changed} changed`, wrong && `${wrong} to correct`].filter(Boolean).join(", ");
      if (wrong) element.open = true;
    },
  };
}

/**
 * The choice of a preset, one of the command's or a file.
 * @param {Kind} kind
 * @param {string} preset
 * @param {(values: Record<string, Value>) => void} setDefaults
 * @param {() => void} onChange
 */
function makePreset(kind, preset, setDefaults, onChange) {
  const names = Object.keys(kind.presets);
  const known = names.includes(preset);
  const options = [...names.map((name) => new Option(name, name)), new Option("Your own file …", OWN_FILE)];
  const { element, control } = labelled("Preset", make("select", {}, ...options));
  const file = make("input", {
    ...{ type: "text", spellcheck: false, value: known ? "" : preset, hidden: known },
    ...{ placeholder: "TOML file, or config.json of a run, on the server", "aria-label": "Preset: path of the file" },
    on: { input: onChange },
  });
  const error = errorLine();
  element.append(file, error);
  control.value = known ? preset : OWN_FILE;
  control.addEventListener("change", () => {
    file.hidden = control.value !== OWN_FILE;
    if (file.hidden) setDefaults(kind.presets[control.value]);
    onChange();
  });
  return {
    element,
    value: () => (control.value === OWN_FILE ? file.value : control.value),
    /** @param {string | undefined} text */
    setError: (text) => showError(error, text, file.hidden ? control : file),
  };
}
