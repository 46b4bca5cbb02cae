// The service's API for scripts: the key, one shape of faults, and images as addresses of this page.

const KEY = "omr_ray.key";
const TRIES = 3; // of a request that never reached the service
const MOST_IMAGES = 400;

export class Fault extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let askForKey = async (message) => {
  throw new Fault(message, 401, "invalid_api_key");
};
let asking = null;

/** Who asks the user for a key that is known: (message) => Promise of it. */
export function asksForKey(how) {
  askForKey = how;
}

export async function isKnown(key) {
  return (await fetch("/v1/sessions?limit=1", { headers: { Authorization: `Bearer ${key}` }, cache: "no-store" })).status !== 401;
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const forgetKey = () => sessionStorage.removeItem(KEY);

export async function request(path, { method = "GET", json, form, headers = {}, signal } = {}) {
  const used = sessionStorage.getItem(KEY);
  const sent = { ...headers };
  if (used) sent.Authorization = `Bearer ${used}`;
  if (json !== undefined) sent["Content-Type"] = "application/json";
  const body = json === undefined ? form : JSON.stringify(json);
  const answer = await fetch(path, { method, headers: sent, body, signal, cache: method === "GET" ? "default" : "no-store" });
  if (answer.ok) return answer;
  const fault = await faultOf(answer);
  if (fault.status !== 401) throw fault;
  // Several requests may fail at once; the user is asked once, and not for a key that was entered meanwhile.
  if (sessionStorage.getItem(KEY) === used) {
    asking ??= askForKey(used ? "Your key is not known here any more. Enter another one." : "").finally(() => (asking = null));
    sessionStorage.setItem(KEY, await asking);
  }
  return request(path, { method, json, form, headers, signal });
}

async function faultOf(answer) {
  let told = {};
  try {
    told = (await answer.json()).error ?? {};
  } catch {
    // Something between us and the service answered.
  }
  const after = answer.headers.get("Retry-After");
  const message = told.message ?? `The service answered ${answer.status}.`;
  return new Fault(after ? `${message} (${after} s)` : message, answer.status, told.code ?? null);
}

export async function get(path) {
  const answer = await reaching(() => request(path));
  return answer.status === 204 ? null : answer.json();
}

/** Sent again under the same Idempotency-Key where the network failed, so that it happens once. */
export async function post(path, json = {}) {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  const key = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return (await reaching(() => request(path, { method: "POST", json, headers: { "Idempotency-Key": key } }))).json();
}

export async function remove(path) {
  return (await reaching(() => request(path, { method: "DELETE" }))).json();
}

export async function upload(path, name, file) {
  const form = new FormData();
  form.append(name, file);
  return (await reaching(() => request(path, { method: "POST", form }))).json();
}

async function reaching(send) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await send();
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // what fetch throws where there was no answer
      if (attempt === TRIES) throw new Fault("The service cannot be reached. Check the connection, and try again.", 0, "unreachable");
      await new Promise((done) => setTimeout(done, 500 * attempt));
    }
  }
}

const images = new Map(); // address -> Promise of an object URL; an <img> cannot send a key

export function image(address) {
  let found = images.get(address);
  if (found === undefined) {
    found = reaching(() => request(`/v1/images/${address}`)).then(async (answer) => URL.createObjectURL(await answer.blob()));
    found.catch(() => images.delete(address));
    images.set(address, found);
    if (images.size > MOST_IMAGES) {
      const [oldest, url] = images.entries().next().value;
      images.delete(oldest);
      url.then(URL.revokeObjectURL, () => {});
    }
  }
  return found;
}

/** Show an image in an <img>, unless that shows another one by the time it is there. */
export async function showImage(element, address) {
  if (element.dataset.address === address) return;
  element.dataset.address = address;
  try {
    const url = await image(address);
    if (element.dataset.address === address) element.src = url;
  } catch (error) {
    if (element.dataset.address === address) delete element.dataset.address;
    throw error;
  }
}
