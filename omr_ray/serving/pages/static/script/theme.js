// Before the page is drawn: light or dark, as the system says or as the user chose here.
(() => {
  const NAME = "omr_ray.theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => localStorage.getItem(NAME);
  const apply = () => {
    const dark = chosen() ? chosen() === "dark" : system.matches;
    document.documentElement.classList.toggle("wa-dark", dark);
    document.documentElement.classList.toggle("wa-light", !dark);
    document.documentElement.dispatchEvent(new CustomEvent("theme"));
  };
  system.addEventListener("change", apply);
  addEventListener("storage", apply);
  addEventListener("theme-toggle", () => {
    const dark = !document.documentElement.classList.contains("wa-dark");
    // Back to what the system says is no choice any more: it follows the system again.
    if (dark === system.matches) localStorage.removeItem(NAME);
    else localStorage.setItem(NAME, dark ? "dark" : "light");
    apply();
  });
  apply();
})();
