// @ts-check
/** Make the control of a setting, and that of an input, and read what is typed into them. */

import { make } from "../common/dom.js";
import { errorLine, makeCheck, makeId, smallButton } from "./controls.js";

/** @import { Field, Input, Value } from "./address.js" */

/**
 * The control of one setting.
 * @param {Field} spec
 * @param {Value} preset its value in the preset
 * @param {Value | undefined} typed what it holds instead; undefined for the preset's
 * @param {() => void} onChange
 */
export function makeField(spec, preset, typed, onChange) {
  const label = inWords(spec.name);
  const hint = makeHint();
  const error = errorLine();
  const control = makeControl(spec, () => {
    refresh();
    onChange();
  });
  const back = smallButton("Undo", () => {
    control.set(preset);
    refresh();
    control.focus();
    onChange();
  });
  back.classList.add("tr-back");
  const unit = make("span", { className: "tr-unit" }, spec.unit ? ` ${spec.unit}` : "");
  const head = make("div", { className: "tr-head" }, control.title(label, unit), back);
  const element = make("div", { className: "tr-field", "data-key": spec.key }, head, control.element, error, hint);
  control.describe(`${hint.id} ${error.id}`);
  control.set(typed ?? preset);
  refresh();

  function refresh() {
    const isChanged = !same(control.value(), preset);
    element.classList.toggle("tr-changed", isChanged);
    back.hidden = !isChanged;
    back.title = `Back to ${say(preset)}`;
    back.setAttribute("aria-label", `${label}: back to ${say(preset)}`);
    const range = spec.range ? `${spec.range}; ` : "";
    setText(hint, `${spec.description}${spec.type === "switch" ? "" : ` (${range}default: ${say(preset)})`}`);
  }

  return {
    element,
    label,
    value: control.value,
    isChanged: () => !same(control.value(), preset),
    /** @param {Value} value of another preset; a field that is not changed takes it */
    setDefault(value) {
      const follows = same(control.value(), preset);
      preset = value;
      if (follows) control.set(value);
      refresh();
    },
    /** @param {string | undefined} text */
    setError(text) {
      error.textContent = text ?? "";
      control.invalid(Boolean(text));
    },
    hasError: () => error.textContent !== "",
  };
}

const makeHint = () => make("p", { className: "fr-note tr-note", id: makeId() });

/**
 * Set a text in which `what stands between backticks` is code.
 * @param {HTMLElement} place
 * @param {string} text
 */
function setText(place, text) {
  place.replaceChildren(...text.split("`").map((part, number) => (number % 2 ? make("code", {}, part) : part)));
}

/**
 * 'max_steps' as 'Max steps'.
 * @param {string} name
 */
export function inWords(name) {
  const words = name.replaceAll("_", " ").replace(/ px$/, "");
  return words[0].toUpperCase() + words.slice(1);
}

/**
 * Whether two values are the same; lists, in any order.
 * @param {Value} one
 * @param {Value} other
 */
export function same(one, other) {
  if (!Array.isArray(one) || !Array.isArray(other)) return one === other;
  return one.length === other.length && one.every((item) => other.includes(item));
}

/**
 * A value in words.
 * @param {Value} value
 */
export function say(value) {
  if (typeof value === "boolean") return value ? "on" : "off";
  if (Array.isArray(value)) return value.join(", ") || "none";
  return value.replaceAll("\n", ", ") || "empty";
}

/**
 * @typedef {object} Control
 * @property {Node} element
 * @property {(text: string, unit: Node) => HTMLElement} title
 * @property {() => Value} value
 * @property {(value: any) => void} set
 * @property {(ids: string) => void} describe
 * @property {(is: boolean) => void} invalid
 * @property {() => void} focus
 */

/**
 * @param {Field} spec
 * @param {() => void} onChange
 * @returns {Control}
 */
function makeControl(spec, onChange) {
  if (spec.type === "choices") return makeBoxes(spec, onChange);
  if (spec.type === "switch") return makeSwitch(onChange);
  const id = makeId();
  const control = makeLine(spec, { id, on: { [spec.type === "choice" ? "change" : "input"]: onChange } });
  return {
    element: control,
    title: (text, unit) => make("label", { htmlFor: id }, text, unit),
    value: () => control.value,
    set: (value) => (control.value = value),
    ...describing(control),
  };
}

/**
 * @param {Field} spec
 * @param {Record<string, unknown>} properties
 */
function makeLine(spec, properties) {
  if (spec.type === "names") return make("textarea", { ...properties, rows: 2 });
  if (spec.type === "choice") {
    const names = [...(spec.optional ? [""] : []), ...spec.choices];
    return make("select", properties, ...names.map((name) => new Option(name || "—", name)));
  }
  const inputMode = spec.type === "whole number" ? "numeric" : spec.type === "number" ? "decimal" : "text";
  return make("input", { ...properties, type: "text", autocomplete: "off", spellcheck: false, inputMode });
}

/** @param {HTMLElement} control */
const describing = (control) => ({
  /** @param {string} ids */
  describe: (ids) => control.setAttribute("aria-describedby", ids),
  /** @param {boolean} is */
  invalid: (is) => control.setAttribute("aria-invalid", String(is)),
  focus: () => control.focus(),
});

/**
 * A checkbox, which stands in its title.
 * @param {() => void} onChange
 * @returns {Control}
 */
function makeSwitch(onChange) {
  const { element, box } = makeCheck({ value: "on", words: "" }, onChange);
  return {
    element: document.createDocumentFragment(),
    title(text, unit) {
      element.append(text, unit);
      return element;
    },
    value: () => box.checked,
    set: (value) => (box.checked = value),
    ...describing(box),
  };
}

/**
 * Several of a few choices.
 * @param {Field} spec
 * @param {() => void} onChange
 * @returns {Control}
 */
function makeBoxes(spec, onChange) {
  const checks = spec.choices.map((name) => makeCheck({ value: name, words: name }, onChange));
  const boxes = checks.map((check) => check.box);
  const id = makeId();
  const element = make("div", { className: "tr-boxes", role: "group", "aria-labelledby": id }, ...checks.map((check) => check.element));
  return {
    ...describing(element),
    element,
    title: (text, unit) => make("span", { id, className: "tr-label" }, text, unit),
    value: () => boxes.filter((box) => box.checked).map((box) => box.value),
    set: (values) => boxes.forEach((box) => (box.checked = values.includes(box.value))),
    invalid: (is) => element.classList.toggle("tr-invalid", is),
    focus: () => boxes[0].focus(),
  };
}

/**
 * The control of what a run starts from or writes: one of the project's, or any path; several where the command takes
 * several.
 * @param {Input} spec
 * @param {string[]} given
 * @param {() => void} onChange
 */
export function makeInput(spec, given, onChange) {
  const id = makeId();
  const hint = makeHint();
  setText(hint, spec.description);
  const error = errorLine();
  const places = make("div", { className: "tr-rows" });
  const optional = spec.required ? null : make("span", { className: "tr-unit" }, " may be left empty");
  const head = make("div", {}, make("label", { htmlFor: id }, spec.label), optional);
  const element = make("div", { className: "tr-field", "data-input": spec.name }, head, places, error, hint);
  /** @type {ReturnType<typeof makeRow>[]} */
  const rows = [];
  let touched = given.length > 0;
  const onInput = () => {
    touched = true;
    onChange();
  };

  /** @param {string} value */
  function addRow(value) {
    const row = makeRow(spec, value, rows.length, onInput);
    if (!rows.length) row.control.id = id;
    row.control.setAttribute("aria-describedby", `${hint.id} ${error.id}`);
    rows.push(row);
    places.append(row.element);
    if (rows.length === 1) return row;
    const remove = smallButton("Remove", () => {
      rows.splice(rows.indexOf(row), 1);
      row.element.remove();
      onInput();
    });
    remove.setAttribute("aria-label", `Remove this one of ${spec.label}`);
    row.element.append(remove);
    return row;
  }

  addRow(given[0] ?? "");
  if (spec.many) {
    for (const value of given.slice(1)) addRow(value);
    const more = smallButton("Add another", () => addRow("").control.focus());
    more.setAttribute("aria-label", `Add another to ${spec.label}`);
    element.insertBefore(more, error);
  }
  return {
    element,
    label: spec.label,
    values: () => rows.map((row) => row.value().trim()).filter(Boolean),
    isChanged: () => rows.some((row) => row.value().trim()),
    /** @param {string | undefined} text */
    setError(text) {
      error.textContent = text ?? "";
      element.classList.toggle("tr-quiet", !touched); // nobody has done anything wrong yet: marked, but not in red
      for (const row of rows) row.setInvalid(Boolean(text));
    },
    hasError: () => error.textContent !== "",
  };
}

/**
 * A choice, and a line for any other path; only the line where there is nothing to choose.
 * @param {Input} spec
 * @param {string} value
 * @param {number} place of this one among several
 * @param {() => void} onChange
 */
function makeRow(spec, value, place, onChange) {
  const options = { type: "text", value, spellcheck: false, autocomplete: "off", placeholder: "path on the server" };
  const line = make("input", { ...options, on: { input: onChange } });
  const name = place ? `${spec.label} ${place + 1}` : "";
  if (!spec.choices.length) {
    if (name) line.setAttribute("aria-label", name);
    return {
      element: make("div", { className: "tr-row" }, line),
      /** @type {HTMLElement} */
      control: line,
      value: () => line.value,
      /** @param {boolean} is */
      setInvalid: (is) => line.setAttribute("aria-invalid", String(is)),
    };
  }
  const other = new Option("Another name or path …", "");
  const select = make("select", {}, new Option(spec.required ? "Choose …" : "—", ""));
  select.append(...spec.choices.map((choice) => Object.assign(new Option(choice.words, choice.value), { title: choice.value })), other);
  if (name) select.setAttribute("aria-label", name);
  line.setAttribute("aria-label", `${name || spec.label}: name or path`);
  const known = spec.choices.findIndex((choice) => choice.value === value);
  select.selectedIndex = !value ? 0 : known >= 0 ? known + 1 : select.options.length - 1;
  line.hidden = !other.selected;
  if (line.hidden) line.value = "";
  select.addEventListener("change", () => {
    line.hidden = !other.selected;
    if (other.selected) line.focus();
    onChange();
  });
  return {
    element: make("div", { className: "tr-row" }, select, line),
    /** @type {HTMLElement} */
    control: select,
    value: () => (other.selected ? line.value : select.value),
    /** @param {boolean} is */
    setInvalid(is) {
      select.setAttribute("aria-invalid", String(is && !other.selected));
      line.setAttribute("aria-invalid", String(is && other.selected));
    },
  };
}
