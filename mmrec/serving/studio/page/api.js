// Everything that is asked of the service goes through here, with the key where there is one.

const KEY = "mmrec.key";
const MOST_PICTURES = 800;

export const keysNeeded = document.documentElement.dataset.keys === "on";

/** A refusal, or no answer at all (status 0). */
export class Problem extends Error {
  constructor(status, title, detail) {
    super(detail);
    this.status = status;
    this.title = title;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
  clear: () => sessionStorage.removeItem(KEY),
};

function headers(more = {}) {
  return key.get() ? { ...more, Authorization: `Bearer ${key.get()}` } : more;
}

async function reply(path, options) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "omit", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "No answer", "The service does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  const places = (told.errors ?? []).map((entry) => `${entry.where}: ${entry.message}`).join("; ");
  const detail = [told.detail ?? answer.statusText, places].filter(Boolean).join(" ");
  const problem = new Problem(answer.status, told.title ?? "Refused", detail.charAt(0).toUpperCase() + detail.slice(1));
  if (answer.status === 401) dispatchEvent(new CustomEvent("mmrec-signin", { detail: problem }));
  throw problem;
}

export async function get(path, query = {}, signal = undefined) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== "");
  const search = given.length ? `?${new URLSearchParams(given)}` : "";
  return (await reply(path + search, { headers: headers(), signal })).json();
}

export async function text(path) {
  return (await reply(path, { headers: headers() })).text();
}

/** Send JSON; with files as a multipart body whose JSON names them "part:NAME". */
export async function send(method, path, body, { files = {}, signal = undefined } = {}) {
  const named = Object.entries(files);
  if (!named.length) {
    const json = body === undefined ? undefined : JSON.stringify(body);
    return (await reply(path, { method, body: json, headers: headers(json ? { "Content-Type": "application/json" } : {}), signal })).json();
  }
  const form = new FormData();
  form.append("request", JSON.stringify(body));
  for (const [name, file] of named) form.append(name, file);
  return (await reply(path, { method, body: form, headers: headers(), signal })).json();
}

export const post = (path, body, options) => send("POST", path, body, options);
export const itemPath = (id) => `/v1/items/${encodeURIComponent(id)}`;

const pictures = new Map();

/** Return where an item's picture can be shown from: its own address, or with a key a blob that was fetched with it. */
export async function pictureSource(id) {
  const path = `${itemPath(id)}/image`;
  if (!key.get()) return path;
  if (!pictures.has(id)) {
    pictures.set(id, reply(path, { headers: headers() }).then((answer) => answer.blob()).then((blob) => URL.createObjectURL(blob)));
    if (pictures.size > MOST_PICTURES) forgetPicture(pictures.keys().next().value);
  }
  return pictures.get(id);
}

/** Forget a picture, because another one may have its place now. */
export function forgetPicture(id) {
  pictures.get(id)?.then((url) => URL.revokeObjectURL(url), () => undefined);
  pictures.delete(id);
}

const cards = new Map();

/** Return cards by id; those that were asked for before are not asked for again. */
export async function cardsOf(ids, signal) {
  const missing = [...new Set(ids.map(String))].filter((id) => !cards.has(id));
  for (let start = 0; start < missing.length; start += 200) {
    const { results } = await post("/v1/cards", { items: missing.slice(start, start + 200) }, { signal });
    for (const card of results) cards.set(String(card.item_id), card);
  }
  return new Map(ids.map((id) => [String(id), cards.get(String(id)) ?? unknownCard(id)]));
}

export function forgetCard(id) {
  cards.delete(String(id));
  forgetPicture(String(id));
}

function unknownCard(id) {
  return { item_id: id, caption: null, picture: false, published: false, offered: false };
}

let told;
/** What answers; asked for once. */
export function model() {
  told ??= get("/v1/model").catch((error) => {
    told = undefined;
    throw error;
  });
  return told;
}
