/**
 * The Train page: a form that the server describes, checked by it while one types, and the command that it comes to.
 * What is filled in stands in the address, so that a reload or a link shows the same. All texts are set as text.
 */

import { at, button, element } from "../common/dom.js";
import { makeField, makeInput, showCommand } from "./fields.js";
import { mountRound } from "./round.js";

const CHECK_AFTER_MS = 250;
const GROUPS = { annotate: "Labels", reward: "Reward model", refl: "Restorer" };
const TABLES = {
  options: "More settings",
  model: "Model",
  train: "Training",
  trajectory: "Trajectory",
  loss: "Loss",
  live_reward: "Live reward model",
  degradation: "Degradation",
};
const OWN_PARAMS = ["kind", "preset", "device", "processes", "after", "from"];
const OWN_FILE = "a file of one's own"; // in the place of a preset's name
let numbered = 0;

/** Fill the element with the page. */
export async function mount(root) {
  const page = { root, known: null, kind: null, fields: new Map(), inputs: new Map(), defaults: {}, asked: 0, timer: 0 };
  if (!(await load(page))) return;
  const round = element("section", "");
  root.replaceChildren(makeFrame(page), round);
  fill(page, readAddress(page));
  mountRound(round);
  const onHash = () => {
    if (!root.isConnected) return window.removeEventListener("hashchange", onHash);
    if (location.hash.slice(1) !== page.written) reload(page);
  };
  window.addEventListener("hashchange", onHash);
}

async function load(page) {
  const from = new URLSearchParams(location.hash.slice(1)).get("from");
  let response = await fetch(at(`/api/train/kinds${from ? `?from=${encodeURIComponent(from)}` : ""}`));
  let fault = "";
  if (response.status === 404) {
    fault = (await response.json()).detail;
    response = await fetch(at("/api/train/kinds"));
  }
  if (!response.ok) {
    page.root.replaceChildren(alert("The forms could not be loaded. Load the page anew."));
    return false;
  }
  page.known = await response.json();
  page.fault = fault;
  return true;
}

async function reload(page) {
  if (await load(page)) fill(page, readAddress(page));
}

function alert(text) {
  const made = element("p", text);
  made.className = "fr-error";
  made.setAttribute("role", "alert");
  return made;
}

/* ---- the frame: what stays when another kind is chosen ---- */

function makeFrame(page) {
  const frame = element("div", "");
  frame.className = "tr-frame";
  page.form = element("form", "");
  page.form.className = "tr-form";
  page.form.noValidate = true;
  page.form.addEventListener("submit", (event) => {
    event.preventDefault();
    start(page);
  });
  page.form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.matches("input")) event.preventDefault(); // ends a value, starts nothing
  });
  page.form.id = "tr-form";
  page.kindSelect = makeSelect("Kind of run", kindOptions(page));
  page.kindSelect.control.addEventListener("change", () => fill(page, { kind: page.kindSelect.control.value }));
  page.about = note("");
  page.body = element("div", "");
  page.body.className = "tr-body";
  page.form.append(page.kindSelect.element, page.about, page.body);
  frame.append(page.form, makeSide(page));
  return frame;
}

function kindOptions(page) {
  const groups = Object.entries(GROUPS).map(([module, label]) => {
    const group = document.createElement("optgroup");
    group.label = label;
    for (const kind of page.known.kinds) {
      if (kind.kind.startsWith(`${module} `)) group.append(option(kind.kind, kind.title));
    }
    return group;
  });
  return groups;
}

function option(value, words) {
  const made = element("option", words);
  made.value = value;
  return made;
}

function note(text) {
  const made = element("p", text);
  made.className = "fr-note tr-note";
  return made;
}

/** A select with its label: {element, control}. */
function makeSelect(label, options) {
  const made = element("div", "");
  made.className = "tr-field";
  const control = document.createElement("select");
  control.id = `tr-own-${++numbered}`;
  control.append(...options);
  const name = element("label", label);
  name.htmlFor = control.id;
  made.append(name, control);
  return { element: made, control };
}

/** Where it runs, the command, what is wrong, and the button. */
function makeSide(page) {
  const side = element("aside", "");
  side.className = "tr-side";
  side.setAttribute("aria-label", "What will run");
  page.device = makeSelect("Runs on", []);
  page.device.control.addEventListener("change", () => {
    suggestProcesses(page);
    changed(page);
  });
  page.deviceError = errorLine();
  page.processes = makeNumber("Processes", () => changed(page));
  page.after = element("details", "");
  page.estimate = note("");
  page.notes = element("div", "");
  page.command = element("pre", "");
  page.command.className = "tr-command";
  page.command.tabIndex = 0;
  page.command.setAttribute("aria-label", "The command");
  const copy = button("Copy", async () => {
    await copyText(page.command);
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
  copy.className = "tr-small";
  const head = element("div", "");
  head.className = "tr-head";
  head.append(element("h4", "The command"), copy);
  page.faults = element("div", "");
  page.faults.setAttribute("aria-live", "polite");
  page.start = element("button", "Start");
  page.start.type = "submit";
  page.start.setAttribute("form", "tr-form");
  page.start.className = "tr-primary";
  page.done = element("div", "");
  page.done.setAttribute("role", "status");
  side.append(
    page.device.element, page.deviceError, page.processes.element, page.after,
    head, page.command, page.estimate, page.notes, page.faults, page.start, page.done,
  );
  return side;
}

function errorLine() {
  const made = element("p", "");
  made.className = "tr-error";
  made.hidden = true;
  return made;
}

function makeNumber(label, onInput) {
  const made = element("div", "");
  made.className = "tr-field";
  const control = document.createElement("input");
  Object.assign(control, { id: `tr-own-${++numbered}`, type: "number", min: 1, max: 64, step: 1, value: 1 });
  control.addEventListener("input", onInput);
  const name = element("label", label);
  name.htmlFor = control.id;
  made.append(name, control);
  return { element: made, control };
}

async function copyText(from) {
  try {
    await navigator.clipboard.writeText(from.textContent);
  } catch {
    const range = document.createRange(); // no clipboard without https: mark it, so that Ctrl+C takes it
    range.selectNodeContents(from);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    document.execCommand("copy");
  }
}

/* ---- the form of a kind ---- */

/** Show the form of a kind with these values; what is left out is the preset's. */
function fill(page, asked) {
  const kind = page.known.kinds.find((one) => one.kind === asked.kind) ?? page.known.kinds.find((one) => one.kind === "reward train");
  page.kind = kind;
  page.kindSelect.control.value = kind.kind;
  page.about.textContent = kind.about;
  const preset = asked.preset || kind.preset;
  page.defaults = kind.presets[preset] ?? Object.fromEntries(kind.fields.map((field) => [field.key, field.default]));
  page.fields = new Map();
  page.inputs = new Map();
  page.body.replaceChildren();
  page.preset = Object.keys(kind.presets).length ? makePreset(page, preset) : null;
  if (page.preset) page.body.append(page.preset.element);
  for (const wanted of kind.inputs) {
    page.inputs.set(wanted.name, makeInput(wanted, asked.inputs?.[wanted.name] ?? [], () => changed(page)));
  }
  for (const field of kind.fields) {
    page.fields.set(field.key, makeField(field, page.defaults[field.key], asked.values?.[field.key], () => changed(page)));
  }
  page.body.append(...visibleParts(page), ...foldedParts(page));
  fillDevice(page, asked);
  page.done.replaceChildren(...(page.fault ? [alert(page.fault)] : []));
  page.fault = "";
  changed(page, 0);
}

function visibleParts(page) {
  const inputs = element("div", "");
  inputs.className = "tr-inputs";
  inputs.append(...page.kind.inputs.filter((one) => !one.folded).map((one) => page.inputs.get(one.name).element));
  const grid = element("div", "");
  grid.className = "tr-grid";
  grid.append(...page.kind.fields.filter((one) => one.shown).map((one) => page.fields.get(one.key).element));
  return [inputs, grid];
}

/** The other fields, table by table, folded; each says how many of its fields are changed. */
function foldedParts(page) {
  page.folds = [];
  const parts = [];
  const inputs = page.kind.inputs.filter((one) => one.folded);
  if (inputs.length) parts.push(makeFold(page, "More to start from", inputs.map((one) => page.inputs.get(one.name)), "tr-inputs"));
  const folded = page.kind.fields.filter((one) => !one.shown);
  for (const table of new Set(folded.map((one) => one.table))) {
    const fields = folded.filter((one) => one.table === table).map((one) => page.fields.get(one.key));
    parts.push(makeFold(page, TABLES[table] ?? table, fields, "tr-grid"));
  }
  return parts;
}

function makeFold(page, title, controls, className) {
  const fold = element("details", "");
  const summary = element("summary", title);
  const count = element("span", "");
  count.className = "fr-note";
  summary.append(" ", count);
  const grid = element("div", "");
  grid.className = className;
  grid.append(...controls.map((control) => control.element));
  fold.append(summary, grid);
  page.folds.push({ title, fold, controls, count });
  return fold;
}

function makePreset(page, preset) {
  const names = Object.keys(page.kind.presets);
  const made = makeSelect("Preset", [...names.map((name) => option(name, name)), option(OWN_FILE, "A file of your own …")]);
  const file = document.createElement("input");
  Object.assign(file, { type: "text", spellcheck: false, placeholder: "TOML file, or config.json of a run, on the server" });
  file.setAttribute("aria-label", "Preset: path of the file");
  const error = errorLine();
  made.element.append(file, error);
  made.control.value = names.includes(preset) ? preset : OWN_FILE;
  file.value = names.includes(preset) ? "" : preset;
  file.hidden = names.includes(preset);
  made.control.addEventListener("change", () => {
    file.hidden = made.control.value !== OWN_FILE;
    if (file.hidden) setDefaults(page, page.kind.presets[made.control.value]);
    changed(page);
  });
  file.addEventListener("input", () => changed(page));
  return {
    element: made.element,
    value: () => (made.control.value === OWN_FILE ? file.value : made.control.value),
    setError: (text) => showError(error, text, file.hidden ? made.control : file),
  };
}

/** Another preset: fields that were not changed follow it, the others stay. */
function setDefaults(page, defaults) {
  page.defaults = defaults;
  for (const [key, field] of page.fields) field.setDefault(defaults[key]);
}

function showError(line, text, control) {
  line.textContent = text ?? "";
  line.hidden = !text;
  control.toggleAttribute("aria-invalid", Boolean(text));
}

function fillDevice(page, asked) {
  const choices = page.known.devices.map((one) => option(one.value, one.words));
  page.device.control.replaceChildren(...choices, option("", "at once, in no queue"));
  page.device.control.value = asked.device ?? (page.kind.needs_device ? page.known.devices[0].value : "");
  if (page.device.control.selectedIndex < 0) page.device.control.value = page.known.devices[0].value;
  page.processes.element.hidden = !page.kind.trains;
  page.processes.control.value = page.kind.trains ? (asked.processes ?? 1) : 1;
  if (asked.processes === undefined) suggestProcesses(page);
  page.after.replaceChildren(element("summary", "Wait for other runs"));
  page.after.hidden = !page.known.live.length && !asked.after?.length;
  page.after.open = Boolean(asked.after?.length);
  const known = new Map(page.known.live.map((run) => [run.id, `run ${run.id}: ${run.kind}, ${run.state}`]));
  for (const id of asked.after ?? []) if (!known.has(id)) known.set(id, `run ${id}`);
  for (const [id, words] of known) {
    const label = element("label", "");
    label.className = "tr-check";
    const box = document.createElement("input");
    Object.assign(box, { type: "checkbox", value: id, checked: Boolean(asked.after?.includes(id)) });
    box.addEventListener("change", () => changed(page));
    label.append(box, words);
    page.after.append(label);
  }
  page.afterError = errorLine();
  page.after.append(page.afterError);
}

/** One process a GPU, where several GPUs are chosen. */
function suggestProcesses(page) {
  if (page.kind.trains) page.processes.control.value = Math.max(1, page.device.control.value.split(",").length);
}

/* ---- what is asked for ---- */

function collect(page) {
  const values = {};
  for (const [key, field] of page.fields) if (field.isChanged()) values[key] = field.value();
  const inputs = {};
  for (const [name, input] of page.inputs) {
    const given = input.values();
    if (given.length) inputs[name] = given;
  }
  return {
    kind: page.kind.kind,
    preset: page.preset ? page.preset.value() : "",
    inputs,
    values,
    device: page.device.control.value,
    processes: Math.min(64, Math.max(1, Math.round(Number(page.processes.control.value)) || 1)),
    after: [...page.after.querySelectorAll("input:checked")].map((box) => Number(box.value)),
  };
}

function readAddress(page) {
  const params = new URLSearchParams(location.hash.slice(1));
  const earlier = page.known.from;
  if (params.has("from") && earlier) return earlier;
  const kind = page.known.kinds.find((one) => one.kind === params.get("kind"));
  const asked = { kind: kind?.kind, preset: params.get("preset") ?? undefined, inputs: {}, values: {} };
  if (params.has("device")) asked.device = params.get("device");
  if (params.has("processes")) asked.processes = Number(params.get("processes")) || 1;
  asked.after = params.getAll("after").map(Number).filter(Number.isInteger);
  for (const input of kind?.inputs ?? []) {
    const given = params.getAll(input.name).filter(Boolean);
    if (given.length) asked.inputs[input.name] = given;
  }
  for (const field of kind?.fields ?? []) {
    const taken = OWN_PARAMS.includes(field.name) || kind.inputs.some((one) => one.name === field.name);
    const name = params.has(field.key) || taken ? field.key : field.name;
    if (!params.has(name)) continue;
    const given = params.getAll(name);
    asked.values[field.key] = { switch: given[0] === "true", choices: given.filter(Boolean) }[field.type] ?? given[0];
  }
  return asked;
}

function writeAddress(page, asked) {
  const params = new URLSearchParams({ kind: asked.kind });
  if (asked.preset && asked.preset !== page.kind.preset) params.set("preset", asked.preset);
  for (const [name, given] of Object.entries(asked.inputs)) for (const value of given) params.append(name, value);
  for (const [key, value] of Object.entries(asked.values)) {
    const given = Array.isArray(value) ? (value.length ? value : [""]) : [String(value)];
    for (const one of given) params.append(key, one);
  }
  const usual = page.kind.needs_device ? page.known.devices[0].value : "";
  if (asked.device !== usual) params.set("device", asked.device);
  if (asked.processes > 1) params.set("processes", asked.processes);
  for (const id of asked.after) params.append("after", id);
  page.written = params.toString();
  history.replaceState(history.state, "", `${location.pathname}${location.search}#${page.written}`);
}

/* ---- checking and starting ---- */

function changed(page, wait = CHECK_AFTER_MS) {
  clearTimeout(page.timer);
  page.timer = setTimeout(() => check(page), wait);
}

async function post(address, asked) {
  const response = await fetch(at(address), {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(asked),
  });
  const answer = await response.json().catch(() => ({}));
  if (response.ok || answer.errors) return { ok: response.ok, ...answer };
  return { ok: false, errors: { "": answer.error ?? "The server does not take this; load the page anew." } };
}

async function check(page) {
  const asked = collect(page);
  writeAddress(page, asked);
  const number = ++page.asked;
  let answer;
  try {
    answer = await post("/api/train/check", asked);
  } catch {
    answer = { errors: { "": "The server cannot be reached." } };
  }
  if (number !== page.asked) return; // a later one is on its way
  if (answer.defaults) setDefaults(page, answer.defaults);
  showCommand(page.command, answer.command ?? "");
  page.estimate.textContent = sayEstimate(answer.estimate);
  page.notes.replaceChildren(...(answer.notes ?? []).map(note));
  showErrors(page, answer.errors ?? {});
}

function showErrors(page, errors) {
  for (const [key, field] of page.fields) field.setError(errors[key]);
  for (const [name, input] of page.inputs) input.setError(errors[name]);
  page.preset?.setError(errors.preset);
  showError(page.deviceError, errors.device ?? errors.processes, page.device.control);
  showError(page.afterError, errors.after, page.after);
  for (const { title, fold, controls, count } of page.folds) {
    const changes = controls.filter((control) => control.isChanged()).length;
    const wrong = controls.filter((control) => control.hasError()).length;
    const parts = [title.startsWith("More") ? "" : `${controls.length} more`, changes && `${changes} changed`, wrong && `${wrong} to look at`];
    count.textContent = parts.filter(Boolean).join(", ");
    if (wrong) fold.open = true;
  }
  const places = Object.keys(errors);
  page.start.disabled = places.length > 0;
  page.faults.replaceChildren();
  if (errors[""]) page.faults.append(alert(errors[""]));
  const others = places.filter((place) => place);
  if (others.length) page.faults.append(note(`Before it can start: ${others.map((place) => nameOf(page, place)).join(", ")}.`));
}

function nameOf(page, place) {
  const control = page.fields.get(place) ?? page.inputs.get(place);
  return control?.label ?? place;
}

function sayEstimate(told) {
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

function sayPace(seconds) {
  return seconds < 0.1 ? `${(1000 * seconds).toFixed(0)} ms a step` : `${seconds.toPrecision(2)} s a step`;
}

function sayTime(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172_800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${(seconds / 86_400).toFixed(1)} days`;
}

async function start(page) {
  if (page.start.disabled) return;
  clearTimeout(page.timer);
  page.start.disabled = true; // pressed twice, it starts once
  page.done.replaceChildren();
  let answer;
  try {
    answer = await post("/api/train/start", collect(page));
  } catch {
    answer = { errors: { "": "The server cannot be reached; look on the Runs page whether it started." } };
  }
  if (!answer.ok) return showErrors(page, answer.errors);
  const link = element("a", `Run ${answer.run}`);
  link.href = at(`/admin/runs#run=${answer.run}`);
  const said = element("p", "");
  said.className = "tr-done";
  said.append(link, answer.waits ? ` is asked for; it ${answer.waits}.` : " was started.");
  page.done.append(said);
  link.focus();
}
