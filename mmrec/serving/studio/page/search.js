// Search by words, by a picture, by posts, or by a mix of them.

import { cardsOf, model, post } from "./api.js";
import { cardElement, fill, fillWaiting, grid, picture, titleOf } from "./cards.js";
import { pictureDrop, slider } from "./controls.js";
import { alertBox, debounced, emptyBox, h, icon, plural, say } from "./dom.js";

const PAGE = 36;
const PARTS = { text: "Words count", image: "The picture counts", items: "The posts count" };

export async function searchView(root, _, query) {
  const state = { text: query.get("text") ?? "", file: null, items: query.getAll("items"), where: query.get("where") ?? "", weights: {} };
  let aborter = null;
  const list = grid("Found");
  const under = h("p", { class: "quiet" });
  const note = h("div");
  const chips = h("ul", { class: "chips", role: "list" });
  const words = h("input", { type: "search", placeholder: "Describe what you are looking for …", "aria-label": "Words to search for", value: state.text, data: { search: "" } });
  const where = h("input", { type: "text", id: "where", "aria-label": "Conditions on attributes", value: state.where, spellcheck: "false", autocapitalize: "none", list: "attributes" });
  const drop = pictureDrop({ label: "A picture", change: (file) => ((state.file = file), search()) });
  const names = h("datalist", { id: "attributes" });
  const soon = debounced(() => search(), 220);
  const weights = h("div", { class: "weights", hidden: true });
  const parts = Object.entries(PARTS).map(([name, label]) => [name, slider({ label, value: 1, change: (value) => ((state.weights[name] = value), soon()) }).element]);
  weights.append(...parts.map(([, element]) => element));
  words.addEventListener("input", () => ((state.text = words.value), soon()));
  where.addEventListener("input", () => ((state.where = where.value), soon()));
  const paste = (event) => drop.paste(event);
  addEventListener("paste", paste);

  root.replaceChildren(
    h("header", { class: "view-head" }, h("div", {}, h("h1", { text: "Search" }), h("p", { class: "lead", text: "By words, by a picture, by posts, or by a mix: they meet in one space." }))),
    h("section", { class: "asking panel" }, drop.element, h("div", { class: "asking-words" }, h("div", { class: "finder" }, icon("search"), words), chips, h("label", { class: "field" }, h("span", { text: "Only where" }), where, names), weights)),
    h("div", { class: "row" }, h("h2", { text: "Found" }), under),
    note,
    list,
  );
  model().then(({ attributes }) => {
    names.append(...attributes.map((name) => h("option", { value: `${name}=` })));
    where.placeholder = attributes.length ? attributes.slice(0, 2).map((name) => `${name}=…`).join(" and ") : "The export has no attributes";
  }, () => undefined);
  words.focus({ preventScroll: true });
  showItems();
  await search();
  return () => {
    removeEventListener("paste", paste);
    aborter?.abort();
  };

  async function showItems() {
    if (!state.items.length) return chips.replaceChildren();
    const cards = await cardsOf(state.items);
    chips.replaceChildren(...state.items.map((id) => {
      const card = cards.get(String(id));
      return h("li", { class: "chip" }, picture(card, "mini"), h("span", { text: titleOf(card) }), h("button", { type: "button", class: "round small", "aria-label": `Search without ${titleOf(card)}`, on: { click: () => ((state.items = state.items.filter((one) => one !== id)), showItems(), search()) } }, icon("close")));
    }));
    return undefined;
  }

  async function search() {
    aborter?.abort();
    const { signal } = (aborter = new AbortController());
    const text = state.text.trim();
    note.replaceChildren();
    if (!text && !state.file && !state.items.length) {
      list.replaceChildren();
      under.textContent = "";
      note.append(emptyBox("Nothing asked yet", "Type a few words, or drop a picture. Any post that is open has a button to search with it."));
      return;
    }
    const body = { k: PAGE, where: state.where.trim(), items: state.items };
    if (text) body.text = text;
    if (state.file) body.image = "part:picture";
    const asked = { text, image: state.file, items: state.items.length };
    const mixed = parts.filter(([name, element]) => !(element.hidden = !asked[name]));
    weights.hidden = mixed.length < 2;
    // Without weights words and picture are read as one post; with them each is a direction of its own.
    const given = Object.fromEntries(mixed.map(([name]) => [name, state.weights[name] ?? 1]));
    if (!weights.hidden && Object.values(given).some((value) => value !== 1)) body.weights = given;
    fillWaiting(list, 12);
    try {
      const answer = await post("/v1/search", body, { files: state.file ? { picture: state.file } : {}, signal });
      const cards = await cardsOf(answer.results.map((entry) => entry.item_id), signal);
      fill(list, answer.results.map((entry) => cardElement(cards.get(String(entry.item_id)), { rank: entry.rank, value: entry.score })));
      under.textContent = answer.results.length ? `The nearest ${answer.results.length}` : "";
      if (!answer.results.length) note.append(emptyBox("Nothing found", "No post meets these conditions."));
      say(`${plural(answer.results.length, "post")} found.`);
    } catch (error) {
      if (error.name === "AbortError") return;
      list.replaceChildren();
      under.textContent = "";
      note.append(alertBox(error));
    } finally {
      if (!signal.aborted) list.classList.remove("waiting");
    }
  }
}
