// What both pages have: the key, the theme, the order in which a dialog gives the focus back.

import { $ } from "./elements.js";
import { asksForKey, forgetKey, hasKey, isKnown } from "./service.js";

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

/** Stays open until a key is known here. */
function ask(message) {
  const [dialog, form, field] = [$("key-dialog"), $("key-form"), $("key")];
  const fault = (text) => {
    $("key-fault").textContent = text;
    $("key-fault").hidden = !text;
  };
  const stay = (event) => event.target === dialog && event.preventDefault();
  fault(message);
  dialog.addEventListener("wa-hide", stay);
  dialog.open = true;
  return new Promise((answered) => {
    async function submit(event) {
      event.preventDefault();
      const key = (field.value ?? "").trim();
      if (!key) return fault("Enter a key first.");
      try {
        if (!(await isKnown(key))) return fault("That key is not known here. Check it, and try again.");
      } catch {
        return fault("The service cannot be reached. Check the connection, and try again.");
      }
      form.removeEventListener("submit", submit);
      dialog.removeEventListener("wa-hide", stay);
      field.value = "";
      dialog.open = false;
      $("forget-key").hidden = false;
      return answered(key);
    }
    form.addEventListener("submit", submit);
  });
}
