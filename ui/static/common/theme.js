// @ts-check
// Set the theme before the first paint: light, dark, or the system's where nothing was chosen.
try {
  const chosen = localStorage.getItem("facereward:theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
} catch {
  // a browser that blocks cookies refuses its storage too
}
