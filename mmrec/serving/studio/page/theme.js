// Runs before anything is painted, so that a chosen theme never flashes.
(() => {
  try {
    const theme = localStorage.getItem("mmrec.theme");
    if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage may be forbidden: the system's theme then.
  }
})();
