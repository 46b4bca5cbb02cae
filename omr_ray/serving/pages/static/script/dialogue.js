// The dialogue: what is known, what changes it, and who shows it.
//
//     /v1 events ──► known ──► show(): stage, aspects, tree, thread, composer
//     the user   ──► acts  ──► /v1
//
// `current` is the round on screen, null the beginning. What the user says next follows it.

import { showAspects } from "./aspects.js";
import { openCompare } from "./compare.js";
import { putWords, showComposer, startComposer } from "./composer.js";
import { $, once, shortened } from "./elements.js";
import { follow } from "./events.js";
import { announce, tell, telling } from "./notices.js";
import { startRestore } from "./restore.js";
import { byId, doing, goneOnFrom, isActive, said } from "./rounds.js";
import { get, post, upload } from "./service.js";
import { markOpen, refresh, startSessions } from "./sessions.js";
import { openSettings, setSettings, startSettings } from "./settings.js";
import { startShell } from "./shell.js";
import { download, showStage } from "./stage.js";
import { showThread, showWelcome } from "./thread.js";
import { showTree } from "./tree.js";

const TITLE = 80;

const known = { session: null, current: null, passing: new Map() }; // passing: round -> { step, steps, preview }
let stopFollowing = () => {};

// -- showing -------------------------------------------------------------------------------------------------------------

function show() {
  const { session, current, passing } = known;
  const round = byId(session, current);
  $("session-title").textContent = session ? session.title || "Untitled" : "New session";
  document.title = `${session ? session.title || "Untitled" : "Dialogue"} · omr_ray`;
  document.body.classList.toggle("fresh", !session?.rounds.length);
  showStage(session, current, passing);
  showAspects(session, current);
  showTree(session, current, (id) => telling(() => choose(id)));
  showWelcome(current === null, (text) => telling(() => send({ utterance: text })));
  showThread(session, current, passing, { answer, skip, retry });
  showComposer({ busy: round !== null && isActive(round), begun: current !== null, follows: following() });
}

function following() {
  const { session, current } = known;
  const round = byId(session, current);
  if (!session?.rounds.length || (round && isActive(round))) return "";
  const from = goneOnFrom(session, current);
  if (from === null) return "What you say next starts anew, beside what is there.";
  const hasChildren = session.rounds.some((round) => round.parent === from && round.status === "done");
  return hasChildren ? `What you say next branches off from round ${from}.` : "";
}

// -- what the service tells ----------------------------------------------------------------------------------------------

function heard(kind, data) {
  const { session, passing } = known;
  if (kind === "round") {
    const index = session.rounds.findIndex((round) => round.id === data.id);
    if (index >= 0) session.rounds[index] = data;
    else session.rounds.push(data);
    if (data.id === known.current && isActive(data)) announce(`Round ${data.id}: ${doing(data, passing.get(data.id))}`);
    show();
  } else if (kind === "progress" || kind === "preview") {
    const before = passing.get(data.round) ?? {};
    passing.set(data.round, { ...before, step: data.step, steps: data.steps ?? before.steps ?? data.step, preview: data.b64_json ?? before.preview });
    const round = byId(session, data.round);
    if (data.round !== known.current || !round || !isActive(round)) return;
    showStage(session, known.current, passing);
    if (kind === "progress") showThread(session, known.current, passing, { answer, skip, retry });
  } else if (kind === "done") {
    ended(byId(session, data.round));
  }
}

function ended(round) {
  if (!round) return;
  known.passing.delete(round.id);
  if (known.session.head === round.id && round.status !== "done") known.session.head = round.parent;
  refresh();
  show();
  if (round.id !== known.current) return;
  if (round.status === "failed") announce(`Round ${round.id} failed: ${round.error}`);
  else if (round.status === "cancelled") announce(`Round ${round.id} is cancelled.`);
  else announce([`Round ${round.id} is done.`, round.reply ?? round.prompt, round.question?.text].filter(Boolean).join(" "));
}

// -- what the user does --------------------------------------------------------------------------------------------------

async function open(id, at) {
  stopFollowing();
  const session = await get(`/v1/sessions/${id}`);
  enter(session, at ?? session.rounds.findLast(isActive)?.id ?? session.head);
}

function enter(session, current) {
  stopFollowing();
  Object.assign(known, { session: { ...session, rounds: [...session.rounds] }, current, passing: new Map() });
  stopFollowing = follow(session.id, session.last_event, heard, (whether) => {
    $("connection").textContent = whether ? "" : "Connecting again…";
  });
  history.replaceState(null, "", `#${session.id}`);
  markOpen(session.id);
  show();
}

function begin() {
  stopFollowing();
  Object.assign(known, { session: null, current: null, passing: new Map() });
  history.replaceState(null, "", location.pathname);
  markOpen(null);
  show();
  $("say").focus();
}

/** A round that follows what is on screen. */
async function say(body) {
  if (!known.session) enter(await post("/v1/sessions", { title: shortened(body.utterance, TITLE) }), null);
  const session = known.session;
  const round = await post(`/v1/sessions/${session.id}/rounds`, { ...body, parent: goneOnFrom(session, known.current) });
  if (known.session !== session) return;
  if (!byId(session, round.id)) session.rounds.push(round);
  session.head = known.current = round.id;
  view("thread");
  show();
  refresh();
}

const send = (body) => telling(() => say(body).then(() => true));
const answer = (text) => send({ answer: text });
const retry = (round) => send({ utterance: round.utterance, answer: round.answer ?? undefined, mode: round.mode, strength: round.strength, adapter: round.adapter ?? undefined });

function skip(id) {
  return telling(async () => {
    heard("round", await post(`/v1/sessions/${known.session.id}/rounds/${id}/skip`));
    announce("Skipped. Say what should change.");
    $("say").focus();
  });
}

async function choose(id) {
  const round = byId(known.session, id);
  known.current = id;
  show();
  if (id === null || round.status === "done") known.session.head = (await post(`/v1/sessions/${known.session.id}/branch`, { round: id })).head;
  show();
  announce(round ? `Round ${id}: ${said(round)}` : "The beginning");
}

async function undo() {
  const { head } = await post(`/v1/sessions/${known.session.id}/undo`);
  known.session.head = known.current = head;
  show();
  announce(head === null ? "Back at the beginning" : `Back at round ${head}`);
}

async function restore(file) {
  const { recipe, session, round, same_adapter: same } = await upload("/v1/restore", "image", file);
  if (session) {
    await open(session, round.id);
    if (round.status === "done") await choose(round.id);
  } else {
    begin();
    putWords(recipe.prompt);
  }
  setSettings({ ...recipe, mode: session ? recipe.mode : "scratch", adapter: same ? recipe.adapter : null });
  openSettings(true);
  const place = session ? `Round ${round.id} is back, with its settings.` : "The picture is not from a session of yours. Its prompt and settings are filled in.";
  tell(same ? place : `${place} Its adapter is gone or has changed since, so none is chosen.`, same ? "success" : "neutral");
}

/** Which part is on screen where there is room for one only. */
function view(name) {
  $("main").dataset.panel = name;
  for (const button of document.querySelectorAll("[data-view]")) button.setAttribute("aria-pressed", String(button.dataset.view === name));
}

// -- the start -----------------------------------------------------------------------------------------------------------

startShell();
startSessions({ open: (id) => telling(() => open(id)), begin, gone: (id) => known.session?.id === id && begin() });
startComposer(send);
startRestore((file) => telling(() => restore(file)));
once($("cancel"), () => telling(() => post(`/v1/sessions/${known.session.id}/rounds/${known.current}/cancel`)));
once($("undo"), () => telling(undo));
once($("download"), () => telling(() => download(known.session, known.current)));
$("compare").addEventListener("click", () => openCompare(known.session, known.current));
for (const button of document.querySelectorAll("[data-view]")) button.addEventListener("click", () => view(button.dataset.view));
show();
await startSettings();
await refresh();
const named = location.hash.slice(1);
if (/^ses_[0-9a-f]+$/.test(named)) await telling(() => open(named));
document.body.dataset.ready = "";
