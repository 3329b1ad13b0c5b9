"use strict";
// The button of the theme: the page follows the system until it is pressed.
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const isDark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const name = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    name();
    window.dispatchEvent(new Event("themechange"));
  });
  name();
  // A link of the contents opens the part that it leads to, where that is folded away.
  const open = () => {
    const part = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const folded = part && (part.matches("details") ? part : part.querySelector("details.fold"));
    if (folded) folded.open = true;
  };
  window.addEventListener("hashchange", open);
  open();
})();
