// Where the user says what they want.

import { $ } from "./elements.js";
import { settings } from "./settings.js";

/** `send({ utterance, ...settings })` resolves to whether it was taken. */
export function startComposer(send) {
  const say = $("say");
  $("composer").addEventListener("submit", async (event) => {
    event.preventDefault();
    const utterance = (say.value ?? "").trim();
    if (!utterance || $("send").loading || $("send").disabled) return;
    $("send").loading = true;
    try {
      if (await send({ utterance, ...settings() })) say.value = "";
    } finally {
      $("send").loading = false;
    }
  });
  say.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("composer").requestSubmit();
  });
}

/** `follows`: the round that the next one follows, where that is not the newest on screen. */
export function showComposer({ busy, begun, follows }) {
  $("send").disabled = busy;
  $("say").placeholder = busy ? "One moment…" : begun ? "What should change?" : "A red dress with a belt";
  $("follows").hidden = !follows;
  $("follows").textContent = follows;
}

export function putWords(text) {
  $("say").value = text;
  $("say").focus();
}
