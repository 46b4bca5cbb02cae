// Looking at a session's rounds, as /v1 gives them.

export const ACTIVE = ["pending", "running"];
export const isActive = (round) => ACTIVE.includes(round.status);
export const said = (round) => [round.answer, round.utterance].filter(Boolean).join(", ");

export const byId = (session, id) => session?.rounds.find((round) => round.id === id) ?? null;

/** From the first round to round `id`. */
export function path(session, id) {
  const found = [];
  for (let round = byId(session, id); round; round = byId(session, round.parent)) found.unshift(round);
  return found;
}

/** The last round up to `id` for which `holds`. */
export const lastOn = (session, id, holds) => path(session, id).findLast(holds) ?? null;

/** The done round that comes next after what is shown: the shown one, or what it was to follow. */
export const goneOnFrom = (session, id) => lastOn(session, id, (round) => round.status === "done")?.id ?? null;

export const withImages = (session) => (session?.rounds ?? []).filter((round) => round.image);

/** What is being done for a round that is on its way, in words. */
export function doing(round, progress) {
  if (round.status === "pending") return "Waiting for its turn";
  if (!round.modality) return "Reading what you said";
  if (round.modality === "words") return "Writing an answer";
  if (!round.prompt) return "Finding the words for the picture";
  if (!round.image) return progress ? `Painting, step ${progress.step} of ${progress.steps}` : "Painting";
  return round.scores ? "Looking for what is unclear" : "Looking at what the picture shows";
}

export function described(round) {
  const what = { pending: "waiting", running: "being made", done: round.modality === "words" ? "an answer in words" : "a picture" }[round.status];
  return `Round ${round.id}: ${said(round)}; ${what ?? round.status}`;
}
