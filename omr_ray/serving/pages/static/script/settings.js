// How the next picture is made. What is left alone is left to the service.

import { $, h } from "./elements.js";
import { telling } from "./notices.js";
import { get } from "./service.js";

const MODES = { "": "Automatic", edit: "Edit the last", scratch: "From scratch" };
const MODALITIES = { "": "Automatic", picture: "A picture", words: "Words" };
const NO_ADAPTER = "none";

let fields = null;

export function startSettings() {
  const mode = choice("Make the picture", MODES);
  const modality = choice("Answer with", MODALITIES);
  const strength = h("wa-slider", { label: "Strength of an edit", hint: "How much of the last picture may change", min: "0.05", max: "1", step: "0.05", value: "0.8", "with-tooltip": true });
  const seed = h("wa-input", { label: "Seed", inputmode: "numeric", pattern: "[0-9]*", maxlength: "19", placeholder: "drawn at random", "with-clear": true });
  const adapter = h("wa-select", { label: "Adapter", value: NO_ADAPTER, size: "s" }, h("wa-option", { value: NO_ADAPTER }, "None"));
  const reset = h("wa-button", { size: "s", appearance: "plain", onclick: () => setSettings({}) }, "Reset");
  for (const field of [mode, modality, strength, seed, adapter]) field.size = "s";
  fields = { mode, modality, strength, seed, adapter, strengthTouched: false };
  strength.addEventListener("input", () => (fields.strengthTouched = true));
  for (const field of [mode, modality, strength, seed, adapter]) for (const kind of ["input", "change"]) field.addEventListener(kind, summarize);
  $("settings").append(mode, modality, strength, h("div", { class: "pair" }, seed, adapter), reset);
  $("toggle-settings").addEventListener("click", () => openSettings($("settings").hidden));
  return telling(async () => {
    for (const { id } of (await get("/v1/adapters")).data) adapter.append(h("wa-option", { value: id }, id));
  });
}

export function openSettings(whether) {
  $("settings").hidden = !whether;
  $("toggle-settings").setAttribute("aria-expanded", String(whether));
}

/** For POST .../rounds. The seed stays text: it may be larger than what JavaScript counts exactly. */
export function settings() {
  const { mode, modality, strength, seed, adapter, strengthTouched } = fields;
  const chosen = {};
  if (mode.value) chosen.mode = mode.value;
  if (modality.value) chosen.modality = modality.value;
  if (strengthTouched && mode.value !== "scratch") chosen.strength = strength.value;
  if (/^[0-9]+$/.test(seed.value ?? "")) chosen.seed = Number.isSafeInteger(Number(seed.value)) ? Number(seed.value) : seed.value;
  if (adapter.value && adapter.value !== NO_ADAPTER) chosen.adapter = adapter.value;
  return chosen;
}

export function setSettings({ mode = "", strength = null, seed = null, adapter = null }) {
  fields.mode.value = mode;
  fields.modality.value = "";
  fields.strengthTouched = strength !== null;
  fields.strength.value = strength ?? 0.8;
  fields.seed.value = seed === null ? "" : String(seed);
  fields.adapter.value = adapter ?? NO_ADAPTER;
  summarize();
}

function summarize() {
  const { mode, modality, strength, seed, adapter } = settings();
  const parts = [mode && MODES[mode], modality && MODALITIES[modality], strength && `strength ${strength.toFixed(2)}`, seed !== undefined && `seed ${seed}`, adapter];
  $("settings-summary").textContent = parts.filter(Boolean).join(" · ");
}

function choice(label, options) {
  const radios = Object.entries(options).map(([value, text]) => h("wa-radio", { value, appearance: "button" }, text));
  return h("wa-radio-group", { label, orientation: "horizontal", value: "" }, radios);
}
