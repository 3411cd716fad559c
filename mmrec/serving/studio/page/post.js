// A post that need not be published: what is near it, who would like it, and what each of its modalities does.

import { forgetCard, itemPath, post as ask, send } from "./api.js";
import { cardElement, fill, grid, picture, titleOf } from "./cards.js";
import { pictureDrop } from "./controls.js";
import { alertBox, count, debounced, emptyBox, h, percent, plural, say, score } from "./dom.js";

const WITHOUT = { text: "Without the caption", image: "Without the picture" };
const DEPTH = 100;
const PATIENCE = 900;

export async function postView(root) {
  const state = { caption: "", file: null, id: freshId(), published: null, over: null, answer: null };
  let aborter = null;
  let timer = 0;
  const result = h("div", { class: "inspected" });
  const publishing = h("div", { class: "published" });
  const caption = h("textarea", { id: "caption", rows: 4, placeholder: "What does the post say?", data: { search: "" } });
  const drop = pictureDrop({ label: "A picture", change: (file) => ((state.file = file), changed()) });
  const id = h("input", { id: "post-id", type: "text", value: state.id, maxlength: 256, spellcheck: "false" });
  const publish = h("button", { class: "button primary", type: "button", text: "Publish", disabled: true });
  const soon = debounced(() => inspect(), 350);
  const changed = () => {
    publish.disabled = !state.file && !state.caption.trim();
    unask();
    if (state.published) ((state.published = null), publishing.replaceChildren(), (state.id = id.value = freshId()));
    soon();
  };
  caption.addEventListener("input", () => ((state.caption = caption.value), changed()));
  id.addEventListener("input", () => ((state.id = id.value.trim()), unask()));
  publish.addEventListener("click", () => put());
  const paste = (event) => drop.paste(event);
  addEventListener("paste", paste);

  root.replaceChildren(
    h("header", { class: "view-head" }, h("div", {}, h("h1", { text: "Post" }), h("p", { class: "lead", text: "Try a post before anybody sees it. Nothing is kept until you publish it." }))),
    h("div", { class: "with-side" }, h("aside", { class: "panel compose", "aria-label": "The post" }, drop.element, h("label", { class: "field", for: "caption" }, h("span", { text: "Caption" })), caption, h("label", { class: "field", for: "post-id" }, h("span", { text: "Id" })), id, publish), h("div", {}, publishing, result)),
  );
  nothing();
  return () => {
    clearTimeout(timer);
    aborter?.abort();
    removeEventListener("paste", paste);
  };

  function nothing() {
    result.replaceChildren(emptyBox("Nothing to look at yet", "Drop a picture, type a caption, or both."));
  }

  function content() {
    const body = {};
    if (state.caption.trim()) body.caption = state.caption;
    if (state.file) body.image = "part:picture";
    return [body, state.file ? { picture: state.file } : {}];
  }

  async function inspect() {
    clearTimeout(timer);
    aborter?.abort();
    const { signal } = (aborter = new AbortController());
    const [body, files] = content();
    if (!Object.keys(body).length) return nothing();
    if (state.published) body.item_id = state.published;
    result.setAttribute("aria-busy", "true");
    try {
      const answer = await ask("/v1/inspect", { ...body, k: 12, users: 8 }, { files, signal });
      draw(result, answer);
      state.answer = answer;
      if (answer.audience.encoded < answer.audience.wanted) timer = setTimeout(inspect, PATIENCE);
      else say(`${plural(answer.nearest.length, "near post")} and ${plural(answer.fans.length, "user")} shown.`);
    } catch (error) {
      if (error.name === "AbortError") return undefined;
      result.replaceChildren(alertBox(error));
    } finally {
      if (!signal.aborted) result.removeAttribute("aria-busy");
    }
    return undefined;
  }

  /** Take back the question whether what has this id may be replaced. */
  function unask() {
    if (state.over === null) return;
    state.over = null;
    publish.textContent = "Publish";
    publishing.replaceChildren();
  }

  /** Ask whether a post may take the place of what has its id; a second click says so. */
  function askOver(there, itemId) {
    state.over = itemId;
    publish.textContent = "Replace it";
    publishing.replaceChildren(h("div", { class: "notice bad", role: "alert" }, h("strong", { text: "This id is taken" }), h("p", { text: `“${titleOf(there)}” is offered as ${itemId}. “Replace it” puts your post in its place for good; another id keeps both.` })));
    publish.disabled = false;
    publish.focus();
  }

  async function put() {
    const [body, files] = content();
    // Kept: what is in the field may be another one when this is taken back.
    const itemId = state.id;
    publish.disabled = true;
    const before = state.answer;
    try {
      const [there] = (await ask("/v1/cards", { items: [itemId] })).results;
      if (there?.offered && state.over !== itemId) return askOver(there, itemId);
      const { created } = await send("PUT", itemPath(itemId), body, { files });
      unask();
      state.published = itemId;
      forgetCard(itemId);
      await showAfter(before, itemId, !created);
      await inspect();
    } catch (error) {
      unask();
      publishing.replaceChildren(alertBox(error));
      publish.disabled = false;
    }
    return undefined;
  }

  /** Show what publishing changed: the post's place in what is recommended to those who would like it. */
  async function showAfter(before, itemId, replaced) {
    const fans = before?.fans.slice(0, 5) ?? [];
    const rows = await Promise.all(fans.map(async (fan) => {
      const { results } = await ask("/v1/recommend", { user_id: fan.user_id, k: DEPTH });
      const place = results.findIndex((entry) => String(entry.item_id) === itemId) + 1;
      return [fan.user_id, place ? `rank ${place}` : `not in ${DEPTH}`];
    }));
    const found = await ask("/v1/search", { items: [itemId], k: 1 });
    const itself = String(found.results[0]?.item_id) === itemId;
    const back = h("button", { class: "button", type: "button", text: replaced ? "Take it back (what it replaced stays gone)" : "Take it back", on: { click: () => takeBack(itemId, replaced) } });
    publishing.replaceChildren(
      h("div", { class: "notice good", role: "status" }, h("strong", { text: "Published" }), h("p", { text: itself ? "Search finds it, and it is recommended like any other from now on." : "It is offered from now on." })),
      rows.length > 0 && h("table", { class: "facts-table" }, h("caption", { text: "In what is recommended" }), h("thead", {}, h("tr", {}, ["User", "Before", "Now"].map((text) => h("th", { scope: "col", text })))), h("tbody", {}, rows.map(([user, now]) => h("tr", {}, h("th", { scope: "row", text: user }), h("td", { text: replaced ? "what it replaced" : "not offered" }), h("td", { text: now }))))),
      h("div", { class: "actions" }, back, h("a", { class: "button", href: `#/search?items=${encodeURIComponent(itemId)}`, text: "Search with it" })),
    );
    say(`Published as ${itemId}.`);
  }

  async function takeBack(itemId, replaced) {
    try {
      await send("DELETE", itemPath(itemId));
      state.published = null;
      forgetCard(itemId);
      state.id = id.value = freshId();
      publishing.replaceChildren(h("p", { class: "quiet", role: "status", text: replaced ? "Taken back: neither it nor what it replaced is offered any more." : "Taken back: it is offered no more." }));
      publish.disabled = false;
      await inspect();
    } catch (error) {
      publishing.append(alertBox(error));
    }
  }
}

const freshId = () => `studio-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;

function draw(result, answer) {
  const near = grid("Nearest posts");
  fill(near, answer.nearest.map((card) => cardElement(card, { rank: card.rank, value: card.score })));
  result.replaceChildren(
    h("section", {}, h("h2", { text: "What each part does" }), h("div", { class: "variants" }, answer.variants.map((one) => variant(one, answer))), answer.variants.length === 1 && h("p", { class: "quiet", text: missing(answer) })),
    h("section", {}, h("div", { class: "row" }, h("h2", { text: "Who would like it most" }), h("p", { class: "quiet", text: audience(answer.audience) })), answer.audience.encoded < answer.audience.wanted && h("progress", { max: answer.audience.wanted, value: answer.audience.encoded, "aria-label": "Users asked" }), answer.fans.length ? fans(answer) : h("p", { class: "quiet", text: "The first users are on their way …" })),
    h("section", {}, h("div", { class: "row" }, h("h2", { text: "Nearest posts" }), h("p", { class: "quiet", text: answer.published ? "Beside itself" : "In content" })), near),
  );
}

function missing(answer) {
  return answer.present.includes("image") ? "Add a caption to see what it changes." : "Add a picture to see what it changes.";
}

function audience({ encoded, wanted, users }) {
  if (encoded < wanted) return `Of ${count(encoded)} users so far; ${count(wanted)} will be asked`;
  return wanted < users ? `Of a sample of ${count(wanted)} of ${plural(users, "user")}` : `Of all ${plural(users, "user")}`;
}

function variant(one, answer) {
  const [whole] = answer.variants;
  const change = one.without && one.mean_score !== null && whole.mean_score !== null ? one.mean_score - whole.mean_score : null;
  return h(
    "div",
    { class: "tile" },
    h("h3", { text: one.without ? WITHOUT[one.without] : "The whole post" }),
    h("p", { class: "big" }, one.standing === null ? score(one.mean_score) : percent(one.standing)),
    h("p", { class: "quiet", text: one.standing === null ? "mean score" : "of the catalogue scores lower on average" }),
    bar(one.standing ?? 0),
    h("p", { class: "small" }, h("span", { text: `mean score ${score(one.mean_score)}` }), change !== null && h("span", { class: change < 0 ? "down" : "up", text: `${change < 0 ? "−" : "+"}${score(Math.abs(change))}` }), one.without && h("span", { text: `${one.same_nearest} of ${answer.nearest.length} nearest stay` })),
  );
}

function bar(share) {
  const element = h("div", { class: "meter", "aria-hidden": "true" }, h("i"));
  element.firstChild.style.setProperty("width", `${100 * share}%`);
  return element;
}

function fans(answer) {
  const parts = Object.keys(answer.fans[0].scores_without);
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": "Users who would like it most" },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, ["User", "Score", ...parts.map((part) => WITHOUT[part]), `Rank among ${count(answer.items)}`, "Because of"].map((text) => h("th", { scope: "col", text })))),
      h("tbody", {}, answer.fans.map((fan) => h("tr", {}, h("th", { scope: "row" }, h("a", { href: `#/user/${encodeURIComponent(fan.user_id)}`, text: fan.user_id })), h("td", { class: "number", text: score(fan.score) }), parts.map((part) => h("td", { class: "number", text: score(fan.scores_without[part]) })), h("td", { class: "number", text: count(fan.rank) }), h("td", {}, fan.because && h("span", { class: "because" }, picture(fan.because, "mini"), h("span", { text: titleOf(fan.because) })))))),
    ),
  );
}
