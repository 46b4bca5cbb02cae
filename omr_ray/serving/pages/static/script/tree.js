// The history: a tree of thumbnails. Depth goes to the right, branches go down.

import { $, h, icon, replace } from "./elements.js";
import { described, isActive } from "./rounds.js";
import { showImage } from "./service.js";

const ACROSS = 92;
const DOWN = 84;
const SIDE = 68;
const START = 0; // the place before the first round

/** [{ id, depth, row, parent }], in the order of the tree: each round right of its parent, each leaf in a row of its own. */
export function laidOut(rounds) {
  const children = Map.groupBy(rounds, (round) => round.parent ?? START);
  const places = [];
  let row = 0;
  function place(id, parent, depth) {
    const own = { id, parent, depth, row };
    places.push(own);
    const after = children.get(id) ?? [];
    after.forEach((child, index) => {
      if (index > 0) row += 1;
      place(child.id, id, depth + 1);
    });
  }
  place(START, null, 0);
  return places;
}

/** `choose(id)` is told which round is taken; null is the beginning. */
export function showTree(session, current, choose) {
  const places = laidOut(session?.rounds ?? []);
  const rounds = new Map((session?.rounds ?? []).map((round) => [round.id, round]));
  const chosen = current ?? START;
  const nodes = places.map((place) => node(place, rounds.get(place.id), place.id === chosen, choose));
  const tree = h("div", { role: "tree", class: "tree", "aria-label": "Rounds", onkeydown: (event) => move(event, places) }, nodes);
  const canvas = $("tree-canvas");
  replace(canvas, lines(places), tree);
  canvas.style.width = `${Math.max(...places.map((place) => place.depth)) * ACROSS + SIDE + 8}px`;
  canvas.style.height = `${(Math.max(...places.map((place) => place.row)) + 1) * DOWN}px`;
  tree.querySelector('[aria-selected="true"]')?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function node(place, round, selected, choose) {
  const content = round ? picture(round) : ["Start"];
  const made = h(
    "div",
    {
      role: "treeitem",
      class: `node ${round ? round.status : "start"}`,
      "data-key": `node-${place.id}`,
      "aria-level": place.depth + 1,
      "aria-selected": String(selected),
      "aria-label": round ? described(round) : "Start, before the first round",
      tabindex: selected ? "0" : "-1",
      onclick: () => choose(round?.id ?? null),
    },
    content,
  );
  made.style.transform = `translate(${place.depth * ACROSS + 4}px, ${place.row * DOWN + 4}px)`;
  return made;
}

function picture(round) {
  const number = h("span", { class: "number", "aria-hidden": "true" }, String(round.id));
  if (round.image) {
    const shown = h("img", { alt: "", loading: "lazy" });
    showImage(shown, round.image).catch(() => shown.replaceWith(icon("circle-alert")));
    return [shown, number];
  }
  if (isActive(round)) return [h("wa-spinner", { "aria-hidden": "true" }), number];
  return [icon({ failed: "circle-alert", cancelled: "ban" }[round.status] ?? "message"), number];
}

function lines(places) {
  const space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  drawing.setAttribute("aria-hidden", "true");
  drawing.setAttribute("class", "lines");
  const at = new Map(places.map((place) => [place.id, place]));
  for (const { parent, depth, row } of places) {
    const before = at.get(parent);
    if (!before) continue;
    const [x0, y0] = [before.depth * ACROSS + SIDE / 2 + 4, before.row * DOWN + SIDE / 2 + 4];
    const [x1, y1] = [depth * ACROSS + SIDE / 2 + 4, row * DOWN + SIDE / 2 + 4];
    const line = document.createElementNS(space, "path");
    line.setAttribute("d", `M${x0} ${y0} C${x0 + 46} ${y0} ${x0 + 20} ${y1} ${x1} ${y1}`);
    drawing.append(line);
  }
  return drawing;
}

/** Arrow keys move the focus: left to the parent, right to the first child, up and down through the tree. */
function move(event, places) {
  const ids = places.map((place) => `node-${place.id}`);
  const index = ids.indexOf(event.target.dataset.key);
  const own = places[index];
  const next = {
    ArrowLeft: () => places.findIndex((place) => place.id === own.parent),
    ArrowRight: () => places.findIndex((place) => place.parent === own.id),
    ArrowUp: () => index - 1,
    ArrowDown: () => index + 1,
    Home: () => 0,
    End: () => places.length - 1,
  }[event.key];
  if (event.key === "Enter" || event.key === " ") event.target.click();
  else if (!next) return;
  event.preventDefault();
  const target = next && event.currentTarget.querySelector(`[data-key="${ids[next()]}"]`);
  if (!target) return;
  for (const item of event.currentTarget.children) item.tabIndex = item === target ? 0 : -1;
  target.focus();
}
