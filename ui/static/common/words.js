// @ts-check
/** Write durations, sizes and times in words. */

/** @param {number | null | undefined} seconds of a duration; nothing where they are unknown */
export function duration(seconds) {
  if (seconds == null || seconds < 0) return "";
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3_600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  const minutes = Math.round(whole / 60);
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  const hours = Math.round(minutes / 60);
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** @param {number} bytes */
export function size(bytes) {
  if (bytes < 1_000) return `${bytes} B`;
  let power = Math.floor(Math.log10(bytes) / 3);
  if (Number((bytes / 1_000 ** power).toPrecision(3)) >= 1_000) power += 1; // 999,999 bytes are 1.00 MB
  power = Math.min(4, power);
  const value = bytes / 1_000 ** power;
  return `${value < 1_000 ? value.toPrecision(3) : Math.round(value)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
}

/** @param {string | null | undefined} text a time as ISO 8601 */
export const moment = (text) => (text ? new Date(text).toLocaleString([], { dateStyle: "short", timeStyle: "short" }) : "");
