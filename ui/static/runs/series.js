// @ts-check
/** Keep the series of a run and add to them; only points that are new since the last answer are sent. */

import { ask } from "../common/server.js";

const POINTS = 400;

/**
 * `look()` asks for news and says whether there are any; `all` is a Map of name -> {x, y}.
 * @param {number} id of the run
 */
export function makeSeries(id) {
  /** @type {Map<string, {x: number[], y: (number | null)[]}>} */
  const all = new Map();
  let version = "";

  async function look() {
    const answer = await ask(`/api/runs/${id}/series?points=${POINTS}&since=${encodeURIComponent(version)}`);
    if (!answer) return false;
    if (answer.whole) all.clear();
    for (const [name, [x, y]] of Object.entries(answer.series)) {
      const one = all.get(name) ?? { x: [], y: [] };
      all.set(name, { x: [...one.x, ...x], y: [...one.y, ...y] });
    }
    version = answer.version;
    if (!answer.whole && [...all.values()].some(({ x }) => x.length > 2 * POINTS)) version = ""; // ask for all of them next time, in few points
    return true;
  }

  return { look, all };
}
