// The seven aspects of a picture (TDRI eq. 4, 5): what was wanted, what it shows, how close that is.

import { $, h } from "./elements.js";
import { lastOn } from "./rounds.js";

const NAMES = ["content", "style", "background", "size", "color", "perspective", "others"];
const CLOSE = 0.75;

export function showAspects(session, current) {
  const round = lastOn(session, current, (one) => one.scores !== null);
  const scores = new Map((round?.scores ?? []).map((score) => [score.aspect, score]));
  $("aspects").replaceChildren(...NAMES.map((name) => row(name, scores.get(name), round?.question?.aspect === name)));
  const match = $("match");
  match.hidden = !round;
  if (round) match.textContent = `Ambiguity ${round.ambiguity.toFixed(2)}`;
}

function row(name, score, asked) {
  const similarity = score?.similarity ?? null;
  const kind = similarity === null ? "open" : similarity >= CLOSE ? "close" : "far";
  const fill = h("span", { class: `fill ${kind}` });
  fill.style.width = `${100 * Math.max(0, Math.min(1, similarity ?? 0))}%`;
  const figure = similarity === null ? (score ? "not asked for" : "—") : similarity.toFixed(2);
  return h(
    "li",
    { class: `aspect ${kind}` },
    h("span", { class: "aspect-name" }, name),
    h("span", { class: "aspect-score" }, figure),
    h("span", { class: "bar", "aria-hidden": "true" }, fill),
    score && h("span", { class: "aspect-words" }, asked && h("span", { class: "asked" }, "asked about"), words(score)),
  );
}

function words({ wanted, shown }) {
  if (wanted === null || wanted === shown) return [`Shows: ${shown}`];
  return [`Shows: ${shown}`, h("span", { class: "wanted" }, `You want: ${wanted}`)];
}
