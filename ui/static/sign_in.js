// Fills the sign-in form: the password field only where the server asks for one, the error of the last try.
import { at } from "./elements.js";

const query = new URLSearchParams(location.search);
const info = await (await fetch(at("/api/sign-in-info"))).json();
document.getElementById("title").textContent = info.title;
document.getElementById("next").value = query.get("next") ?? at("/");
document.getElementById("password-label").hidden = !info.auth;
document.getElementById("explain").textContent = info.auth
  ? "Sign in with your name and password, or open your personal link."
  : "Who is judging? Your answers are kept under this name.";
const error = document.getElementById("error");
error.hidden = !query.get("error");
error.textContent = query.get("error") ?? "";
