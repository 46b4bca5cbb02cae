// The list of sessions, beside the dialogue or in a drawer where there is no room.

import { $, h, icon, replace } from "./elements.js";
import { telling } from "./notices.js";
import { get, remove, showImage } from "./service.js";

const NARROW = matchMedia("(max-width: 900px)");
const times = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

let listed = [];
let hasMore = false;
let acts = null;
let openId = null;

/** `open(id)`, `begin()` for a new one, `gone(id)` when one was deleted. */
export function startSessions(told) {
  acts = told;
  const placed = () => (NARROW.matches ? $("rail-drawer") : $("rail")).append($("sessions-nav"));
  NARROW.addEventListener("change", placed);
  placed();
  $("open-rail").addEventListener("click", () => ($("rail-drawer").open = true));
  $("new-session").addEventListener("click", () => leave(acts.begin));
  $("more-sessions").addEventListener("click", () => telling(() => load(listed.at(-1)?.id)));
  $("delete-no").addEventListener("click", () => ($("delete-dialog").open = false));
  $("delete-yes").addEventListener("click", () => telling(deleteChosen));
}

export const refresh = () => telling(() => load());

export function markOpen(id) {
  openId = id;
  show();
}

async function load(after) {
  const answer = await get(`/v1/sessions?limit=30${after ? `&after=${after}` : ""}`);
  listed = after ? [...listed, ...answer.data] : answer.data;
  hasMore = answer.has_more;
  show();
}

function leave(work) {
  $("rail-drawer").open = false;
  work();
}

function show() {
  $("more-sessions").hidden = !hasMore;
  const items = listed.map(entry);
  replace($("sessions"), items.length ? items : h("li", { class: "hint none" }, "No sessions yet. Your first one will be listed here."));
}

function entry(session) {
  const thumbnail = session.image ? h("img", { alt: "", class: "thumbnail", loading: "lazy" }) : h("span", { class: "thumbnail none" }, icon("message"));
  if (session.image) showImage(thumbnail, session.image).catch(() => {});
  const title = session.title || "Untitled";
  const facts = `${session.rounds} ${session.rounds === 1 ? "round" : "rounds"} · ${ago(session.updated_at)}`;
  const open = h(
    "button",
    { type: "button", class: "session-open", "data-key": `open-${session.id}`, "aria-current": session.id === openId ? "true" : null, onclick: () => leave(() => acts.open(session.id)) },
    thumbnail,
    h("span", { class: "session-text" }, h("span", { class: "session-title" }, title), h("span", { class: "session-facts" }, facts)),
  );
  const trash = h("button", { type: "button", class: "session-delete", "aria-label": `Delete ${title}`, onclick: () => ask(session, title) }, icon("trash"));
  return h("li", { class: "session" }, open, trash);
}

function ago(seconds) {
  const minutes = Math.round((Date.now() / 1000 - seconds) / 60);
  if (minutes < 60) return minutes < 1 ? "just now" : times.format(-minutes, "minute");
  return minutes < 1440 ? times.format(-Math.round(minutes / 60), "hour") : times.format(-Math.round(minutes / 1440), "day");
}

let toDelete = null;

function ask(session, title) {
  toDelete = session.id;
  $("delete-what").textContent = `“${title}” goes with all its rounds and votes. This cannot be undone.`;
  $("delete-dialog").open = true;
}

async function deleteChosen() {
  $("delete-dialog").open = false;
  await remove(`/v1/sessions/${toDelete}`);
  listed = listed.filter((session) => session.id !== toDelete);
  acts.gone(toDelete);
  show();
}
