// Cards of posts, grids and strips of them, and what opens when one is chosen.

import { cardsOf, get, itemPath, pictureSource } from "./api.js";
import { alertBox, calm, h, icon, score } from "./dom.js";

const soon = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      soon.unobserve(entry.target);
      load(entry.target);
    }
  },
  { rootMargin: "300px" },
);

async function load(frame) {
  const { id } = frame.dataset;
  try {
    const image = h("img", { alt: "", decoding: "async", draggable: "false" });
    image.addEventListener("error", () => frame.replaceChildren(placeholder(frame.dataset.caption)));
    image.addEventListener("load", () => frame.classList.add("loaded"));
    image.src = await pictureSource(id);
    frame.replaceChildren(image);
  } catch {
    frame.replaceChildren(placeholder(frame.dataset.caption));
  }
}

function placeholder(caption) {
  return h("span", { class: "placeholder" }, icon("picture"), h("span", { text: caption || "No picture" }));
}

/** The picture of a card; of a post without one its caption, set large. */
export function picture(card, className = "picture") {
  const frame = h("span", { class: className, data: { id: String(card.item_id), caption: card.caption ?? "" } });
  if (card.picture) soon.observe(frame);
  else frame.append(placeholder(card.caption));
  return frame;
}

export const titleOf = (card) => card.caption?.split(/\. |\n/)[0] || `Post ${card.item_id}`;

/**
 * A card. `rank`, `score`, `note` (a short text), `mark` (a text that stands out), `because` (cards), `moved` (places).
 */
export function cardElement(card, { rank, value, note, mark, because = [], moved = 0 } = {}) {
  const title = titleOf(card);
  const open = h(
    "button",
    { class: "card-open", type: "button", tabindex: "-1", "aria-label": spoken(title, { rank, value, note, mark, because }), on: { click: () => openItem(card) } },
    picture(card),
    rank !== undefined && h("span", { class: "rank", "aria-hidden": "true", text: rank }, moved !== 0 && h("i", { class: moved > 0 ? "up" : "down", text: `${moved > 0 ? "↑" : "↓"}${Math.abs(moved)}` })),
    mark && h("span", { class: "mark" }, icon("check"), mark),
    card.published && !mark && h("span", { class: "mark quiet", text: "Published" }),
  );
  return h(
    "li",
    { class: `card${mark ? " marked" : ""}`, data: { id: String(card.item_id) } },
    open,
    h("p", { class: "card-title", text: title, title: card.caption ?? "" }),
    h("p", { class: "card-meta" }, value !== undefined && h("span", { class: "number", text: score(value) }), note && h("span", { text: note })),
    because.length > 0 && h("div", { class: "why", "aria-hidden": "true" }, h("span", { text: because.length === 1 ? "because of this" : `because of these ${because.length}` }), h("span", { class: "why-pictures" }, because.map((one) => picture(one, "mini")))),
  );
}

function spoken(title, { rank, value, note, mark, because }) {
  const parts = [title];
  if (rank !== undefined) parts.push(`rank ${rank}`);
  if (value !== undefined) parts.push(`score ${score(value)}`);
  if (note) parts.push(note);
  if (mark) parts.push(mark);
  if (because.length) parts.push(`because of ${because.map(titleOf).join(", ")}`);
  return parts.join(", ");
}

/** A list of cards that arrow keys walk through; `strip` lays them in one row. */
export function grid(label, { strip = false } = {}) {
  const list = h("ul", { class: strip ? "strip" : "grid", "aria-label": label, role: "list" });
  list.addEventListener("keydown", (event) => walk(event, list));
  list.addEventListener("focusin", (event) => enter(list, event.target));
  return list;
}

/** Put cards into a list; those that stay move to their new place. */
export function fill(list, elements) {
  const before = new Map([...list.children].map((child) => [child.dataset.id, child.getBoundingClientRect()]));
  list.replaceChildren(...elements);
  enter(list, list.querySelector(".card-open"));
  if (calm() || !before.size || document.hidden) return;
  for (const child of elements) {
    const old = before.get(child.dataset.id);
    const now = child.getBoundingClientRect();
    if (old && (old.x !== now.x || old.y !== now.y)) {
      child.animate([{ transform: `translate(${old.x - now.x}px, ${old.y - now.y}px)` }, { transform: "none" }], { duration: 320, easing: "cubic-bezier(.2,.8,.2,1)" });
    } else if (!old) {
      child.animate([{ opacity: 0 }, { opacity: 1 }], { duration: 220 });
    }
  }
}

/** Show that cards are on their way. */
export function fillWaiting(list, number) {
  if (list.children.length) {
    list.classList.add("waiting");
    return;
  }
  list.replaceChildren(...Array.from({ length: number }, () => h("li", { class: "card ghost", "aria-hidden": "true" }, h("span", { class: "picture" }), h("span", { class: "line" }))));
}

function enter(list, target) {
  if (!target?.classList?.contains("card-open")) return;
  for (const button of list.querySelectorAll(".card-open")) button.tabIndex = -1;
  target.tabIndex = 0;
}

function walk(event, list) {
  const buttons = [...list.querySelectorAll(".card-open")];
  const place = buttons.indexOf(document.activeElement);
  if (place < 0) return;
  const columns = buttons.filter((button) => Math.abs(button.getBoundingClientRect().top - buttons[0].getBoundingClientRect().top) < 4).length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -place, End: buttons.length - 1 - place }[event.key];
  if (step === undefined) return;
  const next = buttons[place + step];
  event.preventDefault();
  next?.focus();
  next?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

let dialog;

/** Close what is open: another view comes. */
export function closeItem() {
  dialog?.remove();
  dialog = undefined;
}

/** Open an item: large, with its caption, attributes, and what is like it. */
export async function openItem(card) {
  closeItem();
  const facts = h("dl", { class: "facts" });
  const near = grid("Similar posts", { strip: true });
  const close = () => dialog.close();
  dialog = h(
    "dialog",
    { class: "item", "aria-label": titleOf(card) },
    h("button", { class: "round", type: "button", "aria-label": "Close", on: { click: close } }, icon("close")),
    picture(card, "large"),
    h(
      "div",
      { class: "item-text" },
      h("h2", { text: titleOf(card) }),
      h("p", { class: "caption", text: card.caption ?? "This post has no caption." }),
      h("div", { class: "actions" }, h("a", { class: "button", href: `#/search?items=${encodeURIComponent(card.item_id)}`, on: { click: close } }, icon("search"), "Search with it"), !card.published && h("a", { class: "button", href: `#/map?item=${encodeURIComponent(card.item_id)}`, on: { click: close } }, icon("map"), "Show on the map")),
      facts,
    ),
    h("section", { class: "item-near" }, h("h3", { text: "Similar posts" }), near),
  );
  dialog.addEventListener("click", (event) => event.target === dialog && close());
  document.body.append(dialog);
  dialog.showModal();
  fillWaiting(near, 6);
  try {
    const [item, similar] = await Promise.all([get(itemPath(card.item_id)), get(`${itemPath(card.item_id)}/similar`, { k: 12 })]);
    const said = card.caption ?? "";
    const attributes = Object.entries(item.attributes).filter(([, value]) => value !== null && value !== "" && !(String(value).length > 3 && said.includes(value)));
    const rows = [["Id", item.item_id], ["Has", item.present.join(", ").replaceAll("_", " ")], ...attributes];
    facts.replaceChildren(...rows.flatMap(([name, value]) => [h("dt", { text: String(name).replaceAll("_", " ") }), h("dd", { text: value })]));
    const cards = await cardsOf(similar.results.map((entry) => entry.item_id));
    fill(near, similar.results.map((entry) => cardElement(cards.get(String(entry.item_id)), { value: entry.score })));
  } catch (error) {
    near.replaceChildren();
    facts.replaceWith(card.offered ? alertBox(error) : h("p", { class: "quiet", text: "It was taken back and is offered no more." }));
  }
}
