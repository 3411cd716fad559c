// The catalogue in two dimensions: drag and scroll, or arrow keys and + and -; what is in view is listed beside it.

import { cardsOf, get, pictureSource } from "./api.js";
import { cardElement, fill, grid, openItem, picture, titleOf } from "./cards.js";
import { count, debounced, emptyBox, h, plural, say } from "./dom.js";
import { steer } from "./steering.js";

const SCALE = 65535;
const LISTED = 24;
const PICTURES_FROM = 2.5;
const FEW = 600;
const CELL = 92;
const SIDE = 68;
const MOST_PICTURES = 1000;
const NEAR = 14;
const MOST_ZOOM = 80;
const COLOURS = ["--m0", "--m1", "--m2", "--m3", "--m4", "--m5", "--m6", "--m7", "--m8", "--m9"];

export async function mapView(root, _, query) {
  const canvas = h("canvas", { class: "map", tabindex: "0", role: "application", "aria-label": "Map of the catalogue. Arrow keys move, plus and minus zoom, Enter opens the post in the middle.", "aria-describedby": "map-how" });
  const tip = h("div", { class: "tip", hidden: true });
  // A canvas knows no names of colours: these elements say what they are in the theme of the moment.
  const probes = h("div", { hidden: true }, COLOURS.map((name) => coloured(h("i"), "color", name)));
  const stage = h("div", { class: "stage" }, canvas, tip, probes, h("div", { class: "zoom" }, zoomButton("+", "Zoom in", () => zoom(1.6)), zoomButton("−", "Zoom out", () => zoom(1 / 1.6)), zoomButton("⤢", "Show all", () => reset())));
  const legend = h("ul", { class: "legend", role: "list" });
  const pick = h("select", { id: "colour", on: { change: () => load(pick.value) } });
  const how = h("p", { class: "quiet", id: "map-how" });
  const list = grid("Posts in view");
  const listed = h("p", { class: "quiet" });
  const view = { x: 0, y: 0, zoom: 1 };
  const pictures = new Map();
  let map = null;
  let hovered = -1;
  let frame = 0;

  root.replaceChildren(
    h("header", { class: "view-head" }, h("div", {}, h("h1", { text: "Map" }), h("p", { class: "lead", text: "Posts that the model takes for alike lie near each other." })), h("label", { class: "field inline", for: "colour" }, h("span", { text: "Colour by" }), pick)),
    stage, legend, how,
    h("section", {}, h("div", { class: "row" }, h("h2", { text: "In view" }), listed), list),
  );
  const describeSoon = debounced(() => describe(), 250);
  // While the map moves other pictures are wanted with every frame.
  const fetchSoon = debounced((ids) => fetchPictures(ids), 120);
  const reach = (point) => nearest(...point, NEAR);
  steer(canvas, {
    zoom,
    pan,
    reset,
    over: (point) => hover(reach(point)),
    away: () => hover(-1),
    tap: (point) => open(reach(point)),
    enter: () => open(nearest(stage.clientWidth / 2, stage.clientHeight / 2, Infinity)),
  });
  const observer = new ResizeObserver(() => size());
  const redraw = () => plan();
  observer.observe(stage);
  addEventListener("mmrec-theme", redraw);
  const leave = () => (observer.disconnect(), cancelAnimationFrame(frame), removeEventListener("mmrec-theme", redraw));
  await load("");
  const wanted = query.get("item");
  if (wanted !== null) goTo(wanted);
  return leave;

  async function load(colour) {
    map = await get("/v1/map", { colour });
    if (!pick.options.length) pick.append(...map.attributes.map((name) => h("option", { value: name, text: name.replaceAll("_", " ") })));
    pick.value = map.colour;
    pick.closest("label").hidden = map.attributes.length < 2;
    const sizes = map.groups.map((_, place) => map.group.filter((one) => one === place).length);
    legend.replaceChildren(...(map.groups.length > 1 ? map.groups.map((name, place) => sizes[place] > 0 && h("li", {}, dot(place), h("span", { text: name }), h("small", { text: count(sizes[place]) }))).filter(Boolean) : []));
    how.textContent = `${map.method} fitted on ${plural(map.sample, "post")}${map.sample < map.items ? ", the others beside their nearest neighbours" : ""}. ${map.shown < map.items ? `${count(map.shown)} of ${count(map.items)} are shown. ` : ""}${map.exported ? "" : "Made by this process, for the export has no map: mmrec export --map makes one that keeps neighbourhoods (t-SNE). "}Drag and scroll, or use arrow keys, + and −.`;
    size();
    describe();
  }

  function zoomButton(text, label, act) {
    return h("button", { type: "button", "aria-label": label, text, on: { click: act } });
  }

  function dot(place) {
    return coloured(h("i"), "background", COLOURS[place % COLOURS.length]);
  }

  function size() {
    const ratio = Math.min(devicePixelRatio || 1, 2);
    canvas.width = Math.max(1, Math.round(stage.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(stage.clientHeight * ratio));
    plan();
  }

  // From the map (0 to SCALE) to pixels of the page and back.
  function unit() {
    return (Math.min(stage.clientWidth, stage.clientHeight) * 0.94 * view.zoom) / SCALE;
  }
  function place(index) {
    const per = unit();
    return [stage.clientWidth / 2 + (map.x[index] - SCALE / 2 - view.x) * per, stage.clientHeight / 2 - (map.y[index] - SCALE / 2 - view.y) * per];
  }

  function plan() {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(paint);
  }

  function inside(margin = 0) {
    const found = [];
    if (!map) return found;
    for (let index = 0; index < map.shown; index += 1) {
      const [x, y] = place(index);
      if (x >= -margin && y >= -margin && x <= stage.clientWidth + margin && y <= stage.clientHeight + margin) found.push([index, x, y]);
    }
    return found;
  }

  function paint() {
    if (!map) return;
    const ratio = canvas.width / Math.max(stage.clientWidth, 1);
    const colours = [...probes.children].map((probe) => getComputedStyle(probe).color);
    const paper = canvas.getContext("2d");
    paper.setTransform(ratio, 0, 0, ratio, 0, 0);
    paper.clearRect(0, 0, stage.clientWidth, stage.clientHeight);
    const there = inside(40);
    const radius = Math.min((map.shown < FEW ? 4 : 2) + Math.sqrt(view.zoom) * 0.9, 7);
    paper.globalAlpha = 0.8;
    for (const [index, x, y] of there) {
      paper.fillStyle = colours[map.group[index] % colours.length];
      paper.beginPath();
      paper.arc(x, y, radius, 0, 2 * Math.PI);
      paper.fill();
    }
    paper.globalAlpha = 1;
    if (view.zoom >= PICTURES_FROM) {
      const chosen = scattered(there);
      fetchSoon(chosen.map(([index]) => map.item_ids[index]));
      for (const [index, x, y] of chosen) stamp(paper, index, x, y, colours[map.group[index] % colours.length]);
    }
    if (hovered >= 0) {
      const [x, y] = place(hovered);
      paper.strokeStyle = getComputedStyle(canvas).color;
      paper.lineWidth = 2;
      paper.beginPath();
      paper.arc(x, y, radius + 4, 0, 2 * Math.PI);
      paper.stroke();
    }
  }

  /** One point of every cell; the cells belong to the map, so that pictures stay while it is dragged. */
  function scattered(there) {
    const cell = CELL / unit();
    const cells = new Map();
    for (const point of there) {
      const key = `${Math.floor(map.x[point[0]] / cell)} ${Math.floor(map.y[point[0]] / cell)}`;
      if (!cells.has(key)) cells.set(key, point);
    }
    return [...cells.values()];
  }

  function stamp(paper, index, x, y, colour) {
    const image = pictures.get(map.item_ids[index]);
    if (!image) return;
    const factor = SIDE / Math.max(image.width, image.height);
    const [width, height] = [image.width * factor, image.height * factor];
    paper.save();
    paper.beginPath();
    paper.roundRect(x - width / 2, y - height / 2, width, height, 8);
    paper.save();
    paper.clip();
    paper.drawImage(image, x - width / 2, y - height / 2, width, height);
    paper.restore();
    paper.strokeStyle = colour;
    paper.lineWidth = 2;
    paper.stroke();
    paper.restore();
  }

  /** Fetch pictures that are not there yet, and paint again as they come. */
  async function fetchPictures(ids) {
    const missing = ids.filter((id) => !pictures.has(id));
    if (!missing.length) return;
    for (const id of missing) pictures.set(id, null);
    for (const id of [...pictures.keys()].slice(0, Math.max(0, pictures.size - MOST_PICTURES))) pictures.delete(id);
    const cards = await cardsOf(missing).catch(() => new Map());
    for (const card of cards.values()) {
      if (!card.picture) continue;
      const image = new Image();
      image.addEventListener("load", () => (pictures.set(card.item_id, image), plan()));
      pictureSource(card.item_id).then((source) => (image.src = source), () => undefined);
    }
  }

  function nearest(x, y, reach) {
    let [best, least] = [-1, reach * reach];
    for (const [index, px, py] of inside()) {
      const away = (px - x) ** 2 + (py - y) ** 2;
      if (away < least) [best, least] = [index, away];
    }
    return best;
  }

  async function hover(index) {
    if (index === hovered) return;
    hovered = index;
    plan();
    if (index < 0) return (tip.hidden = true);
    const id = map.item_ids[index];
    const [x, y] = place(index);
    const card = (await cardsOf([id])).get(String(id));
    if (hovered !== index) return undefined;
    tip.replaceChildren(picture(card, "picture"), h("b", { text: titleOf(card) }), map.groups.length > 1 && h("small", { text: map.groups[map.group[index]] }));
    tip.hidden = false;
    const left = x + 20 + tip.offsetWidth > stage.clientWidth ? x - 20 - tip.offsetWidth : x + 20;
    tip.style.setProperty("left", `${Math.max(8, left)}px`);
    tip.style.setProperty("top", `${Math.min(Math.max(8, y - tip.offsetHeight / 2), stage.clientHeight - tip.offsetHeight - 8)}px`);
    return undefined;
  }

  async function open(index) {
    if (index >= 0) openItem((await cardsOf([map.item_ids[index]])).get(String(map.item_ids[index])));
  }

  function zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
    const old = unit();
    view.zoom = Math.min(Math.max(view.zoom * factor, 1), MOST_ZOOM);
    const now = unit();
    // What is under the pointer stays there.
    view.x += (x - stage.clientWidth / 2) * (1 / old - 1 / now);
    view.y -= (y - stage.clientHeight / 2) * (1 / old - 1 / now);
    moved();
  }
  function pan(x, y) {
    const half = SCALE / 2;
    view.x = Math.min(Math.max(view.x - x / unit(), -half), half);
    view.y = Math.min(Math.max(view.y + y / unit(), -half), half);
    moved();
  }
  function reset() {
    Object.assign(view, { x: 0, y: 0, zoom: 1 });
    moved();
  }
  function goTo(id) {
    const index = map.item_ids.findIndex((one) => String(one) === id);
    if (index < 0) return say("This post is not on the map.");
    Object.assign(view, { x: map.x[index] - SCALE / 2, y: map.y[index] - SCALE / 2, zoom: 12 });
    moved();
    hovered = -1;
    return hover(index);
  }
  function moved() {
    hover(-1);
    plan();
    describeSoon();
  }

  async function describe() {
    const there = inside();
    const [midX, midY] = [stage.clientWidth / 2, stage.clientHeight / 2];
    there.sort(([, ax, ay], [, bx, by]) => (ax - midX) ** 2 + (ay - midY) ** 2 - (bx - midX) ** 2 - (by - midY) ** 2);
    const ids = there.slice(0, LISTED).map(([index]) => map.item_ids[index]);
    listed.textContent = there.length > ids.length ? `The ${ids.length} nearest the middle of ${plural(there.length, "post")}` : plural(there.length, "post");
    if (!ids.length) return list.replaceChildren(emptyBox("Nothing here", "Zoom out to find the posts again."));
    const cards = await cardsOf(ids);
    fill(list, ids.map((id) => cardElement(cards.get(String(id)))));
    say(`${plural(there.length, "post")} in view.`);
    return undefined;
  }
}

function coloured(element, property, name) {
  element.style.setProperty(property, `var(${name})`);
  return element;
}
