// Server-sent events by fetch: EventSource cannot send a key. Goes on behind the last id after the connection broke.

import { request } from "./service.js";

const SILENCE_MS = 45_000; // the service sends a sign of life every 15 s
const LONGEST_WAIT_MS = 8_000;

/** Tell `heard(kind, data)` each event after `last`, and `connected(whether)`; returns what stops it. */
export function follow(session, last, heard, connected) {
  const stopped = new AbortController();
  let wait = 500;

  async function listen() {
    const silent = new AbortController();
    let timer = setTimeout(() => silent.abort(), SILENCE_MS);
    try {
      const answer = await request(`/v1/sessions/${session}/events`, {
        headers: { "Last-Event-ID": String(last) },
        signal: AbortSignal.any([stopped.signal, silent.signal]),
      });
      connected(true);
      wait = 500;
      for await (const event of parsed(answer.body, () => {
        clearTimeout(timer);
        timer = setTimeout(() => silent.abort(), SILENCE_MS);
      })) {
        last = event.id;
        heard(event.kind, event.data);
      }
    } finally {
      clearTimeout(timer);
    }
  }

  async function listenOn() {
    while (!stopped.signal.aborted) {
      try {
        await listen();
      } catch (error) {
        if (stopped.signal.aborted || error.status === 404) return;
        connected(false);
      }
      await new Promise((done) => setTimeout(done, wait * (0.75 + Math.random() / 2)));
      wait = Math.min(2 * wait, LONGEST_WAIT_MS);
    }
  }

  listenOn();
  return () => stopped.abort();
}

async function* parsed(body, alive) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    alive();
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split(/\r?\n/).map((line) => line.match(/^(\w+): ?(.*)$/)?.slice(1) ?? ["", ""]));
      if (fields.data !== undefined && fields.id !== undefined) {
        yield { id: Number(fields.id), kind: fields.event, data: JSON.parse(fields.data) };
      }
    }
  }
}
