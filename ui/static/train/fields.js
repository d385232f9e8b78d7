/** The controls of a form: what a field or an input of ui/train/form.py looks like, and what is typed into it. */

import { button, element } from "../common/dom.js";

let numbered = 0;

/**
 * One setting.
 * @param {object} spec what the server says of it
 * @param {string|boolean|string[]} preset its value in the preset
 * @param typed what it holds instead, undefined for the preset's
 * @returns {{element, label, value, isChanged, setDefault, setError, hasError}}
 */
export function makeField(spec, preset, typed, onChange) {
  const id = `tr-field-${++numbered}`;
  const label = inWords(spec.name);
  const made = element("div", "");
  made.className = "tr-field";
  made.dataset.key = spec.key;
  const control = makeControl(spec, id, () => {
    refresh();
    onChange();
  });
  const unit = element("span", spec.unit ? ` ${spec.unit}` : "");
  unit.className = "tr-unit";
  const head = element("div", "");
  head.className = "tr-head";
  const back = button("", () => {
    control.set(preset);
    refresh();
    control.focus();
    onChange();
  });
  back.className = "tr-small tr-back";
  const hint = element("p", "");
  hint.className = "fr-note tr-note";
  hint.id = `${id}-hint`;
  const error = element("p", "");
  error.className = "tr-error";
  error.id = `${id}-error`;
  control.describe(`${hint.id} ${error.id}`);
  head.append(control.title(label, unit), back);
  made.append(head, control.element, error, hint);
  control.set(typed ?? preset);

  function refresh() {
    const isChanged = !same(control.value(), preset);
    made.classList.toggle("tr-changed", isChanged);
    back.hidden = !isChanged;
    back.textContent = "Undo";
    back.title = `Back to ${say(preset)}`;
    back.setAttribute("aria-label", `${label}: back to ${say(preset)}`);
    const range = spec.range ? `${spec.range}; ` : "";
    setText(hint, `${spec.description}${spec.type === "switch" ? "" : ` (${range}default: ${say(preset)})`}`);
  }
  refresh();
  return {
    element: made,
    label,
    value: control.value,
    isChanged: () => !same(control.value(), preset),
    setDefault(value) {
      const follows = same(control.value(), preset);
      preset = value;
      if (follows) control.set(value);
      refresh();
    },
    setError(text) {
      error.textContent = text ?? "";
      control.invalid(Boolean(text));
    },
    hasError: () => error.textContent !== "",
  };
}

/** A command line that breaks between options, not at the dashes in them; its text stays what a shell reads. */
export function showCommand(made, text) {
  const parts = text.split(/ (?=--)/).map((part) => element("span", part));
  made.replaceChildren(...parts.flatMap((part, place) => (place ? [" ", part] : [part])));
}

/** A text in which `what stands between backticks` is code. */
function setText(made, text) {
  made.replaceChildren(...text.split("`").map((part, place) => (place % 2 ? element("code", part) : part)));
}

/** 'max_steps' as 'Max steps' */
export function inWords(name) {
  const words = name.replaceAll("_", " ").replace(/ px$/, "");
  return words[0].toUpperCase() + words.slice(1);
}

function same(one, other) {
  return Array.isArray(one) ? one.length === other.length && one.every((item) => other.includes(item)) : one === other;
}

function say(value) {
  if (typeof value === "boolean") return value ? "on" : "off";
  if (Array.isArray(value)) return value.join(", ") || "none";
  return value.replaceAll("\n", ", ") || "empty";
}

function makeControl(spec, id, onChange) {
  if (spec.type === "choices") return makeBoxes(spec, id, onChange);
  const tag = { choice: "select", names: "textarea" }[spec.type] ?? "input";
  const control = document.createElement(tag);
  control.id = id;
  const isSwitch = spec.type === "switch";
  if (tag === "select") {
    control.append(...[...(spec.optional ? [""] : []), ...spec.choices].map((name) => new Option(name || "—", name)));
  } else if (tag === "textarea") {
    control.rows = 2;
  } else {
    control.type = isSwitch ? "checkbox" : "text";
    control.autocomplete = "off";
    control.spellcheck = false;
    control.inputMode = { "whole number": "numeric", number: "decimal" }[spec.type] ?? "text";
  }
  control.addEventListener(tag === "select" || isSwitch ? "change" : "input", onChange);
  return {
    element: isSwitch ? document.createDocumentFragment() : control,
    title(text, unit) {
      const name = element("label", isSwitch ? "" : text);
      name.htmlFor = id;
      if (isSwitch) name.append(control, text);
      name.className = isSwitch ? "tr-check" : "";
      name.append(unit);
      return name;
    },
    value: () => (isSwitch ? control.checked : control.value),
    set: (value) => (isSwitch ? (control.checked = value) : (control.value = value)),
    describe: (ids) => control.setAttribute("aria-describedby", ids),
    invalid: (is) => control.setAttribute("aria-invalid", String(is)),
    focus: () => control.focus(),
  };
}

/** Several of a few choices. */
function makeBoxes(spec, id, onChange) {
  const made = element("div", "");
  made.className = "tr-boxes";
  made.setAttribute("role", "group");
  made.setAttribute("aria-labelledby", `${id}-label`);
  const boxes = spec.choices.map((name) => {
    const label = element("label", "");
    label.className = "tr-check";
    const box = document.createElement("input");
    Object.assign(box, { type: "checkbox", value: name });
    box.addEventListener("change", onChange);
    label.append(box, name);
    made.append(label);
    return box;
  });
  return {
    element: made,
    title(text, unit) {
      const name = element("span", text);
      name.id = `${id}-label`;
      name.className = "tr-label";
      name.append(unit);
      return name;
    },
    value: () => boxes.filter((box) => box.checked).map((box) => box.value),
    set: (values) => boxes.forEach((box) => (box.checked = values.includes(box.value))),
    describe: (ids) => made.setAttribute("aria-describedby", ids),
    invalid: (is) => made.classList.toggle("tr-invalid", is),
    focus: () => boxes[0].focus(),
  };
}

/**
 * What a run starts from or writes: one of the project's, or any path; several where the command takes several.
 * @returns {{element, label, values, isChanged, setError, hasError}}
 */
export function makeInput(spec, given, onChange) {
  const id = `tr-input-${++numbered}`;
  const made = element("div", "");
  made.className = "tr-field";
  made.dataset.input = spec.name;
  const rows = element("div", "");
  rows.className = "tr-rows";
  const hint = element("p", "");
  setText(hint, spec.description);
  hint.className = "fr-note tr-note";
  hint.id = `${id}-hint`;
  const error = element("p", "");
  error.className = "tr-error";
  error.id = `${id}-error`;
  const title = element("label", spec.label);
  title.htmlFor = id;
  const head = element("div", "");
  head.append(title, ...(spec.required ? [] : [optionalMark()]));
  made.append(head, rows, error, hint);
  const list = [];
  let touched = given.length > 0;
  const onInput = () => {
    touched = true;
    onChange();
  };

  function addRow(value, rowId) {
    const row = makeRow(spec, value, list.length, onInput);
    if (rowId) row.control.id = rowId;
    row.control.setAttribute("aria-describedby", `${hint.id} ${error.id}`);
    list.push(row);
    rows.append(row.element);
    if (list.length > 1) {
      const away = button("Remove", () => {
        list.splice(list.indexOf(row), 1);
        row.element.remove();
        onInput();
      });
      away.className = "tr-small";
      away.setAttribute("aria-label", `Remove this one of ${spec.label}`);
      row.element.append(away);
    }
    return row;
  }

  addRow(given[0] ?? "", id);
  if (spec.many) {
    for (const value of given.slice(1)) addRow(value);
    const more = button("Add another", () => addRow("").control.focus());
    more.className = "tr-small";
    more.setAttribute("aria-label", `Add another to ${spec.label}`);
    made.insertBefore(more, error);
  }
  return {
    element: made,
    label: spec.label,
    values: () => list.map((row) => row.value().trim()).filter(Boolean),
    isChanged: () => list.some((row) => row.value().trim()),
    setError(text) {
      error.textContent = text ?? "";
      error.classList.toggle("tr-quiet", !touched); // nobody has done anything wrong yet
      for (const row of list) row.setInvalid(Boolean(text) && touched);
    },
    hasError: () => error.textContent !== "",
  };
}

function optionalMark() {
  const made = element("span", " may be left empty");
  made.className = "tr-unit";
  return made;
}

/** A choice, and a line for any other path; only the line where there is nothing to choose. */
function makeRow(spec, value, place, onChange) {
  const made = element("div", "");
  made.className = "tr-row";
  const line = document.createElement("input");
  Object.assign(line, { type: "text", value, spellcheck: false, autocomplete: "off" });
  line.placeholder = "path on the server";
  line.addEventListener("input", onChange);
  if (!spec.choices.length) {
    made.append(line);
    if (place) line.setAttribute("aria-label", `${spec.label} ${place + 1}`);
    const setInvalid = (is) => line.setAttribute("aria-invalid", String(is));
    return { element: made, control: line, value: () => line.value, setInvalid };
  }
  const select = document.createElement("select");
  select.append(new Option(spec.required ? "Choose …" : "—", ""));
  for (const choice of spec.choices) {
    const made = new Option(choice.words, choice.value);
    made.title = choice.value;
    select.append(made);
  }
  const other = new Option("Another name or path …", "");
  select.append(other);
  if (place) select.setAttribute("aria-label", `${spec.label} ${place + 1}`);
  line.setAttribute("aria-label", `${spec.label}${place ? ` ${place + 1}` : ""}: name or path`);
  const known = spec.choices.findIndex((choice) => choice.value === value);
  select.selectedIndex = !value ? 0 : known >= 0 ? known + 1 : select.options.length - 1;
  line.hidden = !other.selected;
  if (line.hidden) line.value = "";
  select.addEventListener("change", () => {
    line.hidden = !other.selected;
    if (other.selected) line.focus();
    onChange();
  });
  made.append(select, line);
  return {
    element: made,
    control: select,
    value: () => (other.selected ? line.value : select.value),
    setInvalid(is) {
      select.setAttribute("aria-invalid", String(is && !other.selected));
      line.setAttribute("aria-invalid", String(is && other.selected));
    },
  };
}
