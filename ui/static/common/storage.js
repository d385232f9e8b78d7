// @ts-check
/**
 * Keep texts in this browser. It may refuse (cookies blocked, no storage at all), be full, or be emptied by
 * another page of the same address; nothing here throws, and `keep` says whether the text is really there.
 */

/**
 * The text under a name, null where there is none or the browser refuses.
 * @param {string} name
 */
export function recall(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

/**
 * What JSON text under a name means, null where there is none or it is not JSON.
 * @param {string} name
 */
export function recallJson(name) {
  try {
    return JSON.parse(recall(name));
  } catch {
    return null;
  }
}

/**
 * Keep a text under a name; false where the browser did not.
 * @param {string} name
 * @param {string} text
 */
export function keep(name, text) {
  try {
    localStorage.setItem(name, text);
    return localStorage.getItem(name) === text;
  } catch {
    return false;
  }
}

/** @param {string} name */
export function forget(name) {
  try {
    localStorage.removeItem(name);
  } catch {
    // what was never kept needs no removal
  }
}

/**
 * All names that begin so.
 * @param {string} prefix
 */
export function namesOf(prefix) {
  try {
    return Object.keys(localStorage).filter((name) => name.startsWith(prefix));
  } catch {
    return [];
  }
}
