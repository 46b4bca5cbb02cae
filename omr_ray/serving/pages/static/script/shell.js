// What both pages have: the key, the theme, the order in which a dialog gives the focus back.

import { $ } from "./elements.js";
import { asksForKey, forgetKey, hasKey } from "./service.js";

export function startShell() {
  const toggle = $("theme");
  const named = () => {
    const dark = document.documentElement.classList.contains("wa-dark");
    toggle.querySelector("wa-icon").name = dark ? "sun" : "moon";
    toggle.querySelector("wa-icon").label = dark ? "Light theme" : "Dark theme";
  };
  toggle.addEventListener("click", () => dispatchEvent(new CustomEvent("theme-toggle")));
  document.documentElement.addEventListener("theme", named);
  named();
  $("forget-key").hidden = !hasKey();
  $("forget-key").addEventListener("click", () => {
    forgetKey();
    location.reload();
  });
  asksForKey(ask);
}

function ask(message) {
  const dialog = $("key-dialog");
  const field = $("key");
  $("key-fault").textContent = message;
  $("key-fault").hidden = !message;
  dialog.open = true;
  return new Promise((answered) => {
    const form = $("key-form");
    const stay = (event) => event.target === dialog && event.preventDefault();
    const submit = (event) => {
      event.preventDefault();
      const key = field.value.trim();
      if (!key) return;
      form.removeEventListener("submit", submit);
      dialog.removeEventListener("wa-hide", stay);
      field.value = "";
      dialog.open = false;
      $("forget-key").hidden = false;
      answered(key);
    };
    form.addEventListener("submit", submit);
    dialog.addEventListener("wa-hide", stay);
  });
}
