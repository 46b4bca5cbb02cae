// The picture: what is there, and what is forming.

import { $ } from "./elements.js";
import { telling } from "./notices.js";
import { doing, isActive, lastOn, withImages } from "./rounds.js";
import { image, showImage } from "./service.js";

export function showStage(session, current, passing) {
  const round = session?.rounds.find((one) => one.id === current) ?? null;
  const active = round !== null && isActive(round);
  const seen = lastOn(session, current, (one) => one.image !== null);
  const now = passing.get(current);

  const shown = $("image");
  shown.hidden = !seen;
  shown.alt = seen?.prompt ?? "";
  if (seen) telling(() => showImage(shown, seen.image));
  else delete shown.dataset.address;
  const forming = active && !round.image && now?.preview;
  $("preview").hidden = !forming;
  if (forming) {
    $("preview").src = `data:image/png;base64,${now.preview}`;
    $("preview").alt = `Round ${round.id} as it forms, step ${now.step}`;
  }
  $("blank").hidden = Boolean(seen || forming || active);
  $("picture").classList.toggle("waiting", active && !round.image && !forming);
  showMaking(round, active, now);
  showTools(session, round, seen);
}

function showMaking(round, active, now) {
  $("making").hidden = !active;
  if (!active) return;
  $("making-what").textContent = doing(round, now);
  const bar = $("making-bar");
  const painting = now && !round.image;
  bar.indeterminate = !painting;
  if (painting) bar.value = Math.round((100 * now.step) / now.steps);
}

function showTools(session, round, seen) {
  $("undo").disabled = !round || round.status !== "done" || session.head !== round.id;
  $("compare").disabled = withImages(session).length < 2;
  $("download").disabled = !seen;
  const parts = seen && [seen.mode === "edit" ? `edited at ${seen.strength.toFixed(2)}` : "from scratch", `seed ${seen.seed}`, seen.adapter ?? "no adapter"];
  $("recipe").textContent = parts ? [`Round ${seen.id}`, ...parts].join(" · ") : "";
}

/** The PNG as the service gives it: with the recipe inside. */
export async function download(session, current) {
  const seen = lastOn(session, current, (one) => one.image !== null);
  const link = document.createElement("a");
  link.href = await image(seen.image);
  link.download = `${session.id}-${seen.id}.png`;
  link.click();
}
