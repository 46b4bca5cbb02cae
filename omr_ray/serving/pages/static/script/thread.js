// The dialogue in words: what was said on the path to the round that is shown, and what became of it.

import { $, h, icon } from "./elements.js";
import { doing, isActive, path } from "./rounds.js";

const EXAMPLES = ["a red dress with a belt", "a blue striped coat in the snow", "a small yellow hat on a beach", "checked trousers at night"];

const shown = new Map(); // round -> { told, element }; an element stays while its round says the same

export function showWelcome(whether, say) {
  const place = $("welcome");
  place.hidden = !whether;
  if (!whether || place.childElementCount) return;
  place.append(
    h("h2", {}, "Say what you want to see."),
    h("p", {}, "You get a picture, and perhaps a question. Then correct it in your own words, as often as you like: every round is kept, and you can go back to any of them."),
    h("p", { class: "hint" }, "Try one of these:"),
    h("div", { class: "chips" }, EXAMPLES.map((text) => h("button", { type: "button", class: "chip", onclick: () => say(text) }, text))),
    h(
      "ul",
      { class: "tips" },
      h("li", {}, icon("message"), h("span", {}, "Ask, too: “what do you see?” is answered in words.")),
      h("li", {}, icon("branch"), h("span", {}, "Take any earlier picture to go another way from there.")),
      h("li", {}, icon("image"), h("span", {}, "Drop a PNG that you downloaded here, and its round comes back.")),
    ),
  );
}

/** `acts`: answer(text), skip(id), retry(round), use(text). */
export function showThread(session, current, progress, acts) {
  const rounds = path(session, current);
  const items = rounds.map((round) => {
    const last = round.id === current;
    const told = JSON.stringify([session.id, round, last, isActive(round) && progress.get(round.id)?.step]);
    const before = shown.get(round.id);
    if (before?.told === told) return before.element;
    const element = item(round, last, progress.get(round.id), acts);
    shown.set(round.id, { told, element });
    return element;
  });
  const list = $("thread");
  const scroll = $("thread-scroll");
  const changed = list.childElementCount !== items.length || items.some((element, index) => list.children[index] !== element);
  if (!changed) return;
  const key = list.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  list.replaceChildren(...items);
  if (key) list.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
  scroll.scrollTop = scroll.scrollHeight;
}

function item(round, last, progress, acts) {
  return h(
    "li",
    { class: "exchange" },
    h("div", { class: "bubble mine" }, round.answer && h("span", { class: "answered" }, round.answer), round.utterance),
    h("div", { class: `bubble theirs ${round.status}` }, h("span", { class: "round-number" }, `Round ${round.id}`), outcome(round, progress, acts)),
    round.question && round.status === "done" && question(round, last, acts),
  );
}

function outcome(round, progress, acts) {
  if (isActive(round)) return [h("span", { class: "doing" }, h("wa-spinner", { "aria-hidden": "true" }), doing(round, progress))];
  if (round.status === "cancelled") return [h("p", {}, "Cancelled.")];
  if (round.status === "failed") {
    const again = h("wa-button", { size: "s", appearance: "outlined", "data-key": `retry-${round.id}`, onclick: () => acts.retry(round) }, icon("retry", "start"), "Try again");
    return [h("p", { class: "fault" }, icon("circle-alert"), round.error), again];
  }
  return [h("p", {}, round.modality === "words" ? round.reply : round.prompt)];
}

function question(round, last, acts) {
  const open = last && !round.skipped;
  const made = h("div", { class: "question" }, h("p", { class: "question-text" }, round.question.text));
  if (round.skipped) made.append(h("p", { class: "hint" }, "Skipped."));
  if (!open) return made;
  const chips = round.question.suggestions.map((text, index) =>
    h("button", { type: "button", class: "chip", "data-key": `chip-${round.id}-${index}`, onclick: () => acts.answer(text) }, text),
  );
  const own = h("wa-input", { class: "own", size: "s", label: "Your own answer", placeholder: "Your own answer", maxlength: "2000", "data-key": `own-${round.id}` });
  const form = h(
    "form",
    {
      class: "own-row",
      onsubmit: (event) => {
        event.preventDefault();
        if (own.value?.trim()) acts.answer(own.value.trim());
      },
    },
    own,
    h("wa-button", { type: "submit", size: "s", appearance: "outlined" }, "Answer"),
    h("wa-button", { size: "s", appearance: "plain", class: "skip-question", "data-key": `skip-${round.id}`, onclick: () => acts.skip(round.id) }, "Skip"),
  );
  made.append(h("div", { class: "chips", role: "group", "aria-label": round.question.text }, chips), form);
  return made;
}
