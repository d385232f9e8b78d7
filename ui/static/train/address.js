// @ts-check
/** Keep a filled-in form in the page's address, so that a reload or a link shows the same. */

/**
 * @typedef {object} Field what the server says of a setting
 * @property {string} key
 * @property {string} name
 * @property {"choice" | "choices" | "switch" | "names" | "number" | "whole number" | "text"} type
 * @property {string} table
 * @property {string} description
 * @property {boolean} shown
 * @property {boolean} optional
 * @property {string[]} choices
 * @property {string} [unit]
 * @property {string} [range]
 * @property {Value} default
 *
 * @typedef {object} Input what the server says of something to start from or to write
 * @property {string} name
 * @property {string} label
 * @property {string} description
 * @property {boolean} required
 * @property {boolean} many
 * @property {boolean} folded
 * @property {{value: string, words: string}[]} choices
 *
 * @typedef {object} Kind a kind of run that can be started
 * @property {string} kind
 * @property {string} title
 * @property {string} about
 * @property {string} preset the one that is used unless another is named
 * @property {Record<string, Record<string, Value>>} presets
 * @property {Input[]} inputs
 * @property {Field[]} fields
 * @property {boolean} needs_device
 * @property {boolean} trains
 *
 * @typedef {string | boolean | string[]} Value
 *
 * @typedef {object} Asked a filled-in form; what is left out is the preset's
 * @property {string} [kind]
 * @property {string} [preset]
 * @property {Record<string, string[]>} [inputs]
 * @property {Record<string, Value>} [values]
 * @property {string} [device]
 * @property {number} [processes]
 * @property {number[]} [after]
 */

const OWN_PARAMS = ["kind", "preset", "device", "processes", "after", "from"];

/**
 * What an address asks for.
 * @param {URLSearchParams} params
 * @param {Kind[]} kinds
 * @returns {Asked}
 */
export function readAsked(params, kinds) {
  const kind = kinds.find((one) => one.kind === params.get("kind"));
  /** @type {Asked} */
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
    if (field.type === "switch") asked.values[field.key] = given[0] === "true";
    else asked.values[field.key] = field.type === "choices" ? given.filter(Boolean) : given[0];
  }
  return asked;
}

/**
 * The address of a filled-in form, shorter by what is usual.
 * @param {Asked} asked
 * @param {{preset: string, device: string}} usual
 */
export function writeAsked(asked, usual) {
  const params = new URLSearchParams({ kind: asked.kind });
  if (asked.preset && asked.preset !== usual.preset) params.set("preset", asked.preset);
  for (const [name, given] of Object.entries(asked.inputs)) for (const value of given) params.append(name, value);
  for (const [key, value] of Object.entries(asked.values)) {
    const given = Array.isArray(value) ? (value.length ? value : [""]) : [String(value)];
    for (const one of given) params.append(key, one);
  }
  if (asked.device !== usual.device) params.set("device", asked.device);
  if (asked.processes > 1) params.set("processes", String(asked.processes));
  for (const id of asked.after) params.append("after", String(id));
  return params;
}
