// @ts-check
/** Find out whether a browser keeps our cookies. */

/** Whether this browser keeps a cookie for this address; one that says yes may still refuse them. */
export function cookiesWork() {
  try {
    const name = "facereward-cookie-check";
    document.cookie = `${name}=1; SameSite=Lax; path=${location.pathname}`;
    const works = navigator.cookieEnabled && document.cookie.includes(name);
    document.cookie = `${name}=; SameSite=Lax; path=${location.pathname}; max-age=0`;
    return works;
  } catch {
    return false;
  }
}
