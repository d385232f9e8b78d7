// @ts-check
/** Fold the menu of the pages as people who use a keyboard expect it: Escape closes it. */

/**
 * @param {HTMLDetailsElement} menu
 */
export function setUpMenu(menu) {
  const summary = menu.querySelector("summary");
  menu.addEventListener("keydown", (event) => {
    // where the page is wide, the links always show and there is nothing to press
    if (event.key !== "Escape" || !menu.open || !summary.checkVisibility()) return;
    event.stopPropagation();
    menu.open = false;
    summary.focus();
  });
}
