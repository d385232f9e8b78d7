/** Small pieces of the page. */

/** An element of that tag with a text. */
export function element(tag, text) {
  const made = document.createElement(tag);
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
