// Annotation of pairs (TDRI section 4.1): two images, what they show, which one is better.

import { $, h, once } from "./elements.js";
import { announce, telling } from "./notices.js";
import { get, post, showImage } from "./service.js";
import { startShell } from "./shell.js";

const TAGS = ["content", "style", "background", "size", "color", "perspective", "others"];
const SIDES = { left: "Left image", right: "Right image" };
const CHOICES = [
  { choice: "left", text: "Left", key: "ArrowLeft", shown: "←" },
  { choice: "tie", text: "Tie", key: "t", shown: "T" },
  { choice: "both_bad", text: "Both bad", key: "b", shown: "B" },
  { choice: "right", text: "Right", key: "ArrowRight", shown: "→" },
];
const LONGEST_S = 86_400;

let pair = null; // the one on screen
let choice = null;
let since = 0; // when it came on screen, in milliseconds
let progress = { done: 0, remaining: 0 };

// -- showing -------------------------------------------------------------------------------------------------------------

function side(name) {
  const label = SIDES[name];
  const tags = TAGS.map((tag) => h("button", { type: "button", class: "chip tag", "data-tag": tag, "aria-pressed": "false", onclick: toggleTag }, tag));
  return h(
    "section",
    { class: "panel side", "aria-label": label, "data-side": name },
    h("img", { alt: label, class: "shown" }),
    h("div", { class: "notes" }, h("div", { class: "tags", role: "group", "aria-label": `${label}: shown as asked` }, h("span", { class: "hint" }, "Shown as asked:"), tags), h("wa-textarea", { label: `What the ${name} image shows`, rows: "2", resize: "auto", size: "s", maxlength: "2000" })),
  );
}

function toggleTag(event) {
  const button = event.currentTarget;
  button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
}

const sideOf = (name) => document.querySelector(`[data-side="${name}"]`);

function show(shown, said) {
  pair = shown;
  since = performance.now();
  $("task").hidden = false;
  $("finished").hidden = true;
  $("prompt").textContent = shown.prompt;
  for (const name of Object.keys(SIDES)) {
    const note = said?.notes[name] ?? { description: "", tags: [] };
    const place = sideOf(name);
    place.querySelector("wa-textarea").value = note.description;
    for (const tag of place.querySelectorAll(".tag")) tag.setAttribute("aria-pressed", String(note.tags.includes(tag.dataset.tag)));
    telling(() => showImage(place.querySelector("img"), shown[name]));
  }
  choose(said?.choice ?? null);
  announce(`Asked for: ${shown.prompt}`);
}

function choose(chosen) {
  choice = chosen;
  for (const button of $("choices").children) {
    button.setAttribute("aria-checked", String(button.dataset.choice === chosen));
    button.tabIndex = button.dataset.choice === (chosen ?? "left") ? 0 : -1;
  }
  for (const name of Object.keys(SIDES)) sideOf(name).classList.toggle("better", chosen === name);
  $("save").disabled = chosen === null;
}

function showProgress() {
  const { done, remaining } = progress;
  const all = done + remaining;
  $("progress").value = all ? Math.round((100 * done) / all) : 0;
  $("progress-text").textContent = all ? `${done} of ${all} judged` : "No pairs are put up yet";
}

// -- loading and saving --------------------------------------------------------------------------------------------------

async function load() {
  const next = await get("/v1/annotations/next");
  if (next === null) {
    const { data } = await get("/v1/annotations/mine");
    progress = { done: data.length, remaining: 0 };
    pair = null;
    $("task").hidden = true;
    $("finished").hidden = false;
    $("finished-last").disabled = data.length === 0;
    announce("All pairs are judged.");
  } else {
    progress = { done: next.done, remaining: next.remaining };
    show(next, null);
  }
  showProgress();
}

/** The one that was judged last; pressed again, the one before it. */
async function loadLast() {
  const { data } = await get("/v1/annotations/mine");
  if (!data.length) return announce("You have not judged a pair yet.");
  const at = data.findIndex((said) => said.pair === pair?.id);
  const said = data.at(at > 0 ? at - 1 : at === 0 ? 0 : -1);
  return show({ id: said.pair, prompt: said.prompt, left: said.left, right: said.right }, said);
}

async function save() {
  if (choice === null || pair === null) return;
  const seconds = Math.min(LONGEST_S, (performance.now() - since) / 1000);
  const notes = Object.fromEntries(Object.keys(SIDES).map((name) => [name, noteOf(sideOf(name))]));
  await post("/v1/annotations", { pair: pair.id, choice, seconds, notes });
  await load();
}

function noteOf(place) {
  const tags = [...place.querySelectorAll('.tag[aria-pressed="true"]')].map((tag) => tag.dataset.tag);
  return { description: (place.querySelector("wa-textarea").value ?? "").trim(), tags };
}

// -- keys ----------------------------------------------------------------------------------------------------------------

function pressed(event) {
  const inText = event.composedPath()[0]?.matches?.("textarea, input");
  if (inText && event.key === "Escape") return $("judgement").focus();
  if (inText || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("wa-dialog[open]")) return undefined;
  const onButton = event.composedPath().some((element) => element.matches?.("button, a, wa-button") && !element.matches(".choice"));
  const found = pair && CHOICES.find(({ key }) => key === event.key || key === event.key.toLowerCase());
  const act = { l: () => $("load-last").click(), n: () => $("load").click(), "?": openHelp, enter: onButton ? null : () => $("save").click() }[event.key.toLowerCase()];
  if (found) {
    choose(found.choice);
    if (document.activeElement?.matches(".choice")) $("choices").querySelector('[aria-checked="true"]').focus();
  } else if (act) act();
  else return undefined;
  return event.preventDefault();
}

function openHelp() {
  $("help-dialog").open = true;
}

// -- the start -----------------------------------------------------------------------------------------------------------

startShell();
$("pair").append(...Object.keys(SIDES).map(side));
$("choices").append(
  ...CHOICES.map(({ choice: own, text, shown }) =>
    h("button", { type: "button", role: "radio", class: "choice", "data-choice": own, "aria-checked": "false", onclick: () => choose(own) }, h("span", {}, text), h("kbd", { "aria-hidden": "true" }, shown)),
  ),
);
once($("load"), () => telling(load));
once($("load-last"), () => telling(loadLast));
once($("finished-last"), () => telling(loadLast));
once($("save"), () => telling(save));
$("help").addEventListener("click", openHelp);
$("help-close").addEventListener("click", () => ($("help-dialog").open = false));
addEventListener("keydown", pressed);
showProgress();
await telling(load);
document.body.dataset.ready = "";
