/** Small pieces of the page. */

const ROOT = new URL("../..", import.meta.url).pathname.slice(0, -1);

/** The address of one of this server's paths ('/api/…'), which may lie below a path of a proxy's. */
export const at = (path) => ROOT + path;

/** An element of that tag with a text, in the direction of its script. */
export function element(tag, text) {
  const made = document.createElement(tag);
  made.dir = "auto";
  made.textContent = text;
  return made;
}

/** A button with a text and, where one presses it, its key. */
export function button(text, onClick, key = "") {
  const made = element("button", `${text} `);
  made.type = "button";
  if (key) made.append(element("kbd", key));
  made.addEventListener("click", onClick);
  return made;
}
