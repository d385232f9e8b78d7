// @ts-check
/**
 * Fill the sign-in form: the password field only where the server asks for one, the error of the last try, whether
 * cookies are blocked, and for a new name like a known one the question who is meant.
 */

import { $, button } from "../common/dom.js";
import { at } from "../common/server.js";
import { cookiesWork } from "./cookies.js";

const query = new URLSearchParams(location.search);
$("cookies").hidden = cookiesWork();
$("next").value = query.get("next") ?? at("/");
$("error").hidden = !query.get("error");
$("error").textContent = query.get("error") ?? "";
if (query.get("new")) askWhoIsMeant(query.get("new"), query.getAll("alike"), query.has("free"));

const info = await (await fetch(at("/api/sign-in-info"))).json();
$("title").textContent = info.title;
$("password-label").hidden = !info.auth;
$("explain").textContent = info.auth
  ? "Sign in with your name and password, or open your personal link."
  : "Who is judging? Your answers are kept under this name.";

/**
 * A name that nobody has yet, but some have one like it: `free` says whether it may be taken all the same.
 * @param {string} name
 * @param {string[]} alike
 * @param {boolean} free
 */
function askWhoIsMeant(name, alike, free) {
  /** @type {(chosen: string, isNew: boolean) => void} */
  const enterAs = (chosen, isNew) => {
    $("name").value = chosen;
    $("is-new").value = isNew ? "yes" : "";
    $("form").requestSubmit();
  };
  $("name").value = name;
  $("alike-question").textContent = `Nobody is called “${name}” yet. Did you mean …`;
  $("alike-names").replaceChildren(
    ...alike.map((other) => button(other, () => enterAs(other, false))),
    ...(free ? [button(`No, I am new: start as ${name}`, () => enterAs(name, true))] : []),
  );
  $("alike").hidden = false;
}
