// @ts-check
/** Fill the header of an admin page: the project's name, the theme button, signing out. */

import { $ } from "./dom.js";
import { setUpMenu } from "./menu.js";
import { ask } from "./server.js";
import { setUpTheme } from "./theme_button.js";

const wide = matchMedia("(min-width: 900px)"); // as header.css says
const dark = matchMedia("(prefers-color-scheme: dark)");

/** Show the theme in Gradio's own parts too, which go by a class of the body. */
function showTheme() {
  const { theme } = document.documentElement.dataset;
  document.body.classList.toggle("dark", theme ? theme === "dark" : dark.matches);
}

export async function mount() {
  setUpTheme($("fr-theme"), showTheme);
  dark.addEventListener("change", showTheme);
  const fold = () => ($("fr-pages").open = wide.matches);
  wide.addEventListener("change", fold);
  fold();
  setUpMenu($("fr-pages"));
  const { person, project } = await ask("/api/session");
  $("fr-project").textContent = project.title;
  $("fr-sign-out").firstElementChild.textContent = `Sign out ${person.name}`;
  $("fr-sign-out").hidden = false;
}
