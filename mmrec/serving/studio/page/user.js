// A user: what they chose, what is recommended to them and why, and what they really chose next.

import { cardsOf, get, model, post } from "./api.js";
import { cardElement, fill, fillWaiting, grid, picture } from "./cards.js";
import { choices, finder, slider, toggle } from "./controls.js";
import { alertBox, count, date, debounced, emptyBox, h, plural, say } from "./dom.js";

const NAMES = { text: "Caption", image: "Picture", item_id: "Item id" };
const PAGE = 24;
const MOST = 96;
const DEEP = 500;

export async function userView(root, [id]) {
  const lead = h("p", { class: "lead", text: "What somebody chose, and what the model makes of it." });
  const head = h("header", { class: "view-head" }, h("div", {}, h("h1", { text: id ?? "User" }), lead), findUser());
  const body = h("div");
  root.replaceChildren(head, body);
  if (id === undefined) return welcome(body);
  return show(body, lead, id);
}

function findUser() {
  return finder({
    label: "Find a user by the beginning of the id",
    placeholder: "Find a user …",
    suggest: async (prefix) => (await get("/v1/users", { prefix, k: 8 })).results.map((user) => ({ id: user.user_id, text: String(user.user_id), note: about(user) })),
    choose: ({ id }) => (location.hash = `#/user/${encodeURIComponent(id)}`),
  });
}

const about = (user) => [plural(user.events, "choice"), date(user.last)].filter(Boolean).join(" · ");

async function welcome(body) {
  body.replaceChildren(h("p", { class: "quiet", text: "Looking for users …" }));
  const [active, asked] = await Promise.all([get("/v1/users", { k: 12 }), get("/v1/users", { k: 24, held_out: "true" })]);
  const shown = new Set(active.results.map((user) => user.user_id));
  const others = asked.results.filter((user) => !shown.has(user.user_id));
  const section = (title, text, users) =>
    users.length > 0 && h("section", {}, h("h2", { text: title }), h("p", { class: "quiet", text }), h("ul", { class: "people", role: "list" }, users.slice(0, 12).map((user) => h("li", {}, h("a", { href: `#/user/${encodeURIComponent(user.user_id)}` }, h("span", { class: "latest" }, user.latest.map((card) => picture(card, "quarter"))), h("b", { text: user.user_id }), h("span", { text: about(user) }))))));
  body.replaceChildren(
    ...[
      section("Most active", `Of ${plural(active.users, "user")} of the feed.`, active.results),
      section("Known next choice", `The split holds the next choice of ${plural(asked.found, "user")} out: see whether the model finds it.`, others.length ? others : asked.results),
    ].filter(Boolean),
  );
}

async function show(body, lead, id) {
  const [user, about] = await Promise.all([get(`/v1/users/${encodeURIComponent(id)}`, { k: 60 }), model()]);
  const state = { mode: "now", freshness: 0, diversity: 0, weights: {}, seen: "include", k: PAGE };
  const view = { user, state, about, plain: new Map(), aborter: null };
  document.title = `${user.user_id} · mmrec studio`;
  lead.textContent = person(user);

  view.list = grid("Recommendations");
  view.headline = h("h2", { text: "Recommended" });
  view.under = h("p", { class: "quiet", "aria-live": "polite" });
  view.more = h("button", { class: "button", type: "button", text: "Show more", on: { click: () => ((state.k = Math.min(state.k + PAGE, MOST)), rank(view)) } });
  view.chosen = h("div");
  view.past = h("div");
  view.pastTitle = h("h2");
  const soon = debounced(() => rank(view), 120);
  const change = (update) => (update(), soon());

  body.replaceChildren(
    h("section", {}, h("div", { class: "row" }, view.pastTitle, user.held_out ? choices({ label: "Which history", value: "now", options: [["now", "All they chose"], ["before", "Before the next choice"]], change: (mode) => ((state.mode = mode), history(view), rank(view)) }) : h("p", { class: "quiet", text: "The most recent first" })), view.past),
    view.chosen,
    h("div", { class: "with-side" }, h("aside", { class: "panel", "aria-label": "Re-rank" }, h("details", { open: matchMedia("(min-width: 901px)").matches }, h("summary", { text: "Re-rank" }), ...controls(view, change))), h("section", {}, h("div", { class: "row" }, view.headline, view.under), view.list, h("div", { class: "center" }, view.more))),
  );
  history(view);
  await rank(view);
}

function person(user) {
  if (!user.known) return "Nobody of this id has chosen anything yet: what is popular and what is fresh is shown.";
  return `${plural(user.events, "choice")} in the feed · the model reads the last ${count(user.history_length)}`;
}

function controls({ state, about }, change) {
  const sliders = [];
  const add = (one) => (sliders.push(one), one.element);
  const items = [
    h("button", { class: "link", type: "button", text: "Reset", on: { click: () => change(() => ((state.freshness = state.diversity = 0), (state.weights = {}), sliders.forEach((one, place) => one.set(place < 2 ? 0 : 1)))) } }),
    add(slider({ label: "Freshness", help: "Newer posts first.", value: 0, change: (value) => change(() => (state.freshness = value)) })),
    add(slider({ label: "Diversity", help: "Less of the same.", value: 0, change: (value) => change(() => (state.diversity = value)) })),
  ];
  if (about.modalities.length > 1) {
    items.push(h("h3", { text: "How much counts" }));
    for (const name of about.modalities) {
      items.push(add(slider({ label: NAMES[name] ?? name, value: 1, change: (value) => change(() => (state.weights[name] = value)) })));
    }
  }
  items.push(toggle({ label: "Leave out what they had", checked: false, change: (on) => change(() => (state.seen = on ? "exclude" : "include")) }));
  return items;
}

function history({ user, state, past, pastTitle, chosen, plain }) {
  plain.clear();
  const before = state.mode === "before";
  const known = new Map(user.history.map((event) => [String(event.item_id), event]));
  const strip = grid("What they chose, the most recent first", { strip: true });
  pastTitle.textContent = before ? "Chose until then" : "Chose";
  if (before) {
    const ids = [...user.held_out.before].reverse();
    cardsOf(ids).then((cards) => fill(strip, ids.map((id) => cardElement(cards.get(String(id)), { note: date(known.get(String(id))?.timestamp ?? null) }))), () => undefined);
  } else {
    fill(strip, [...user.history].reverse().map((event) => cardElement(event, { note: [event.event, date(event.timestamp)].filter(Boolean).join(" · ") })));
  }
  past.replaceChildren(user.history.length ? strip : emptyBox("No history", "Feedback on a post starts one."));
  chosen.replaceChildren();
}

async function rank(view) {
  const { user, state, list } = view;
  view.aborter?.abort();
  const { signal } = (view.aborter = new AbortController());
  const before = state.mode === "before";
  const weights = Object.fromEntries(Object.entries(state.weights).filter(([, value]) => value !== 1));
  const neutral = !state.freshness && !state.diversity && !Object.keys(weights).length;
  const asker = before ? { history: user.held_out.before } : { user_id: user.user_id };
  fillWaiting(list, 12);
  try {
    const asked = { ...asker, seen: state.seen, freshness: state.freshness, diversity: state.diversity, modality_weights: weights };
    const answer = await post("/v1/recommend", { ...asked, k: state.k, reasons: 3 }, { signal });
    const because = answer.results.map((entry) => (entry.because ?? []).map((near) => near.item_id));
    const cards = await cardsOf([...answer.results.map((entry) => entry.item_id), ...because.flat()], signal);
    const ids = answer.results.map((entry) => String(entry.item_id));
    if (neutral) ids.forEach((id, place) => view.plain.set(id, place + 1));
    const next = new Set(before ? user.held_out.chosen.map((card) => String(card.item_id)) : []);
    list.classList.remove("waiting");
    fill(list, answer.results.map((entry, place) => cardElement(cards.get(ids[place]), {
      rank: entry.rank,
      value: entry.score ?? undefined,
      note: entry.reason ?? undefined,
      mark: next.has(ids[place]) ? "Chosen next" : undefined,
      because: because[place].map((id) => cards.get(String(id))),
      moved: neutral ? 0 : (view.plain.get(ids[place]) ?? entry.rank) - entry.rank,
    })));
    view.more.hidden = state.k >= MOST || answer.results.length < state.k;
    view.under.textContent = answer.strategy === "model" ? (neutral ? "By the model's score" : "Re-ranked; arrows tell from where") : "Popular and fresh, for a stranger";
    if (before) showChosen(view, await deep(view, asked, signal));
    say(`${plural(ids.length, "recommendation")} shown.`);
  } catch (error) {
    if (error.name === "AbortError") return;
    list.classList.remove("waiting");
    list.replaceChildren();
    view.under.replaceChildren(alertBox(error));
  }
}

/** Return the ids of many recommendations, to find what lies below those that are shown. */
async function deep(view, asked, signal) {
  const answer = await post("/v1/recommend", { ...asked, k: Math.min(DEEP, view.about.items) }, { signal });
  return answer.results.map((entry) => String(entry.item_id));
}

function showChosen({ user, chosen, about }, ids) {
  const { chosen: cards, at, split, part } = user.held_out;
  const places = cards.map((card) => ids.indexOf(String(card.item_id)) + 1);
  const best = Math.min(...places.filter((place) => place > 0));
  const among = `of ${plural(about.items, "post")}`;
  const verdict = Number.isFinite(best) ? `The best of it is at rank ${best} ${among}.` : `None of it is among the first ${ids.length} ${among}.`;
  chosen.replaceChildren(
    h(
      "section",
      { class: "next" },
      h("div", {}, h("h2", { text: "What they really chose next" }), h("p", { text: verdict }), h("p", { class: "quiet", text: `Held out by the split “${split}” (${part})${at === null ? "" : `, ${date(at)}`}. The posts before it are given without their times.` })),
      h("ul", { class: "next-cards", role: "list" }, cards.map((card, place) => h("li", {}, picture(card, "mini big"), h("span", { text: places[place] ? `Rank ${places[place]}` : `> ${ids.length}` })))),
    ),
  );
}
