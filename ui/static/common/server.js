// @ts-check
/** Ask the server, and have it do things. */

const ROOT = new URL("../..", import.meta.url).pathname.slice(0, -1);

/**
 * The address of one of this server's paths ('/api/…'), which may lie below a path of a proxy.
 * @param {string} path
 */
export const at = (path) => ROOT + path;

/** What the server, or the way to it, refused. */
export class Refusal extends Error {
  /**
   * @param {string} message one line
   * @param {number} status of the answer; 0 where none came
   * @param {Record<string, string>} errors of a form, by the name of the field; '' for the whole form
   */
  constructor(message, status, errors = { "": message }) {
    super(message);
    this.status = status;
    this.errors = errors;
  }
}

/** @param {Response} response */
async function read(response) {
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  throw new Refusal(body.error ?? body.detail ?? `The server said ${response.status}.`, response.status, body.errors);
}

/**
 * The JSON of an address; null where it is the same as when it was last asked for with the same `memory`.
 * @param {string} address
 * @param {Map<string, string | null>} [memory] address → ETag
 * @throws {Refusal}
 */
export async function ask(address, memory) {
  const known = memory?.get(address);
  const response = await fetch(at(address), { cache: "no-store", headers: known ? { "If-None-Match": known } : {} });
  if (response.status === 304) return null;
  if (response.status === 401) location.assign(at(`/sign-in?next=${encodeURIComponent(location.pathname)}`));
  const body = await read(response);
  memory?.set(address, response.headers.get("ETag"));
  return body;
}

/**
 * Ask for something to be done; its answer as JSON.
 * @param {string} address
 * @param {object} body
 * @throws {Refusal}
 */
export async function post(address, body = {}) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(at(address), options).catch(() => {
    throw new Refusal("The server cannot be reached.", 0);
  });
  return read(response);
}
