// @ts-check
/** Say on the page of a browser without the address's token whether cookies are blocked. */

import { cookiesWork } from "./cookies.js";

document.getElementById("cookies").hidden = cookiesWork();
