// Sets the theme before the first paint: light, dark, or the system's where nothing was chosen.
const chosen = localStorage.getItem("facereward:theme");
if (chosen) document.documentElement.dataset.theme = chosen;
