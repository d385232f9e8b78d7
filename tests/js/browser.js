/** Stand in for the parts of a browser that the modules under test use. */

/** A localStorage of `most` characters; one that is full throws, as a browser's does. */
export class Storage {
  constructor(most = Infinity) {
    Object.defineProperty(this, "most", { value: most, writable: true });
  }
  getItem(name) {
    return Object.hasOwn(this, name) ? this[name] : null;
  }
  setItem(name, text) {
    if (name.length + text.length > this.most) throw new Error("QuotaExceededError");
    this[name] = text;
  }
  removeItem(name) {
    delete this[name];
  }
}

/** Put a browser's globals in place; returns what is sent to the page's listeners: `emit(type, event)`. */
export function makeBrowser({ storage = new Storage() } = {}) {
  const listeners = new Map();
  const set = (name, value) => Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
  set("localStorage", storage);
  set("window", { addEventListener: (type, action) => listeners.set(type, action) });
  set("location", { pathname: "/", hash: "" });
  set("navigator", {});
  return { storage, emit: (type, event = {}) => listeners.get(type)?.(event) };
}

/** Answer the requests in turn: each a function of the request's options, whose answer becomes the response. */
export function answerWith(...answers) {
  const sent = [];
  globalThis.fetch = async (address, options = {}) => {
    sent.push({ address, body: options.body ? JSON.parse(options.body) : null });
    const answer = answers.length > 1 ? answers.shift() : answers[0];
    return answer(sent.at(-1));
  };
  return sent;
}

export const json = (body, status = 200, headers = {}) => new Response(status === 304 ? null : JSON.stringify(body), { status, headers });

/** Let everything that is ready happen. */
export async function settle() {
  for (let turn = 0; turn < 30; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}
