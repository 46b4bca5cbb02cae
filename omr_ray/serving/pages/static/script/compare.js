// Two rounds side by side, under a slider, and a vote between them.

import { $, h, once } from "./elements.js";
import { announce, tell, telling } from "./notices.js";
import { described, said, withImages } from "./rounds.js";
import { get, post, showImage } from "./service.js";

const FIELDS = { utterance: "Said", answer: "Answered", prompt: "Prompt", mode: "Made", seed: "Seed", strength: "Strength", adapter: "Adapter", ambiguity: "Ambiguity" };
const CHOICES = { left: "Left is better", tie: "Equally good", both_bad: "Both are bad", right: "Right is better" };

export function openCompare(session, current) {
  const rounds = withImages(session);
  const right = rounds.find((round) => round.id === current) ?? rounds.at(-1);
  const left = rounds.find((round) => round.id === right.parent) ?? rounds.findLast((round) => round !== right);
  const sides = { left: select("Left", rounds, left), right: select("Right", rounds, right) };
  const view = h("div", { class: "compare-view" });
  const changes = h("div", { class: "changes" });
  const how = h(
    "wa-radio-group",
    { label: "Show", orientation: "horizontal", value: "slider", class: "compare-how", size: "s" },
    h("wa-radio", { value: "slider", appearance: "button" }, "Slider"),
    h("wa-radio", { value: "both", appearance: "button" }, "Side by side"),
  );
  const votes = Object.entries(CHOICES).map(([choice, text]) => {
    const button = h("wa-button", { appearance: "outlined", "data-choice": choice }, text);
    once(button, () => telling(() => vote(session, sides, choice)));
    return button;
  });
  $("compare-dialog").replaceChildren(
    h("div", { class: "compare-sides" }, sides.left, how, sides.right),
    view,
    h("div", { class: "votes", role: "group", "aria-label": "Which one is better?" }, votes),
    changes,
  );
  const show = () => telling(() => showPair(session, Number(sides.left.value), Number(sides.right.value), how.value, view, changes, votes));
  for (const field of [sides.left, sides.right, how]) field.addEventListener("change", show);
  $("compare-dialog").open = true;
  show();
}

function select(label, rounds, chosen) {
  const options = rounds.map((round) => h("wa-option", { value: String(round.id) }, `${round.id}: ${said(round)}`));
  return h("wa-select", { label, size: "s", value: String(chosen.id) }, options);
}

async function showPair(session, one, other, how, view, changes, votes) {
  const rounds = [one, other].map((id) => session.rounds.find((round) => round.id === id));
  const images = rounds.map((round, index) => h("img", { alt: described(round), slot: how === "slider" ? ["after", "before"][index] : null }));
  if (how === "slider") {
    const slider = h("wa-comparison", { position: "50" }, images[1], images[0]);
    view.replaceChildren(slider);
    slider.updateComplete.then(() => slider.shadowRoot.querySelector("[part='handle']").setAttribute("aria-label", "Divider between both pictures"));
  } else {
    view.replaceChildren(h("div", { class: "both" }, images));
  }
  for (const button of votes) button.disabled = one === other;
  const [difference] = await Promise.all([
    get(`/v1/sessions/${session.id}/compare?one=${one}&other=${other}`),
    ...images.map((element, index) => showImage(element, rounds[index].image)),
  ]);
  changes.replaceChildren(table(difference));
}

function table({ one, other, changed, ancestor }) {
  const rows = Object.entries(FIELDS)
    .filter(([name]) => name in changed)
    .map(([name, label]) => h("tr", {}, h("th", { scope: "row" }, label), changed[name].map((value) => h("td", {}, written(value)))));
  if (!rows.length) return h("p", { class: "hint" }, "The rounds do not differ in what they were made from.");
  const head = h("tr", {}, h("td"), h("th", { scope: "col" }, `Round ${one.id}`), h("th", { scope: "col" }, `Round ${other.id}`));
  const shared = ancestor === null ? "They have no round in common." : `Both go back to round ${ancestor}.`;
  return h("table", {}, h("caption", {}, `What differs. ${shared}`), h("thead", {}, head), h("tbody", {}, rows));
}

function written(value) {
  if (value === null || value === "") return "—";
  return typeof value === "number" && !Number.isInteger(value) ? value.toFixed(2) : String(value);
}

async function vote(session, sides, choice) {
  const [left, right] = [Number(sides.left.value), Number(sides.right.value)];
  await post(`/v1/sessions/${session.id}/votes`, { left, right, choice });
  const { data } = await get(`/v1/sessions/${session.id}/votes`);
  const text = `Vote saved: ${CHOICES[choice].toLowerCase()}. ${data.length === 1 ? "That is the first" : `That makes ${data.length}`} in this session.`;
  tell(text, "success");
  announce(text);
}
