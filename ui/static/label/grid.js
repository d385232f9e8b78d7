// @ts-check
/** Choose the grid of a task's frames. */

const GAP = 8; // CSS pixels between the frames, as in style.css

/**
 * The number of columns in which so many frames show their images largest; of equals the one with fewer empty places,
 * then the wider.
 * @param {number} count
 * @param {{width: number, height: number}} room CSS pixels
 * @param {{width: number, height: number}} box of an image, in its own pixels
 */
export function chooseColumns(count, room, box) {
  const choices = Array.from({ length: count }, (_, place) => {
    const columns = place + 1;
    const rows = Math.ceil(count / columns);
    const width = (room.width - GAP * (columns - 1)) / columns;
    const height = (room.height - GAP * (rows - 1)) / rows;
    return { columns, scale: Math.min(width / box.width, height / box.height), empty: columns * rows - count };
  });
  choices.sort((one, other) => other.scale - one.scale || one.empty - other.empty || other.columns - one.columns);
  return choices[0].columns;
}
