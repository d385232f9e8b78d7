/** The page of a browser that does not have the address's token: says whether cookies are blocked. */

import { cookiesWork } from "./cookies.js";

document.getElementById("cookies").hidden = cookiesWork();
