// What the user is told beside the page: faults that stay until they are closed, news that go, and what is only spoken.

import { $, h, icon } from "./elements.js";

const SHOWN_MS = 6000;

export function tell(message, kind = "neutral") {
  const close = h("wa-button", { appearance: "plain", size: "s", onclick: () => notice.remove() }, h("wa-icon", { name: "xmark", label: "Close" }));
  const mark = icon({ danger: "circle-alert", success: "check", neutral: "message" }[kind], "icon");
  const notice = h("wa-callout", { variant: kind, class: "notice" }, mark, h("span", {}, message), close);
  $("notices").append(notice);
  if (kind !== "danger") setTimeout(() => notice.remove(), SHOWN_MS);
  return notice;
}

/** Runs `work`; a fault is shown as what it says, and is not raised. */
export async function telling(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    if (error.status === undefined) console.error(error);
    tell(error.status === undefined ? "Something went wrong on this page. Reload it, and try again." : error.message, "danger");
    return undefined;
  }
}

let spoken = "";

export function announce(text) {
  if (text === spoken) return;
  spoken = text;
  $("spoken").textContent = text;
}
