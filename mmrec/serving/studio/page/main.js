// The frame: tabs, routes (the part of the address behind #), theme, sign-in, keys.

import { get, key, keysNeeded, model } from "./api.js";
import { closeItem } from "./cards.js";
import { alertBox, h, icon, say } from "./dom.js";
import { userView } from "./user.js";

const VIEWS = {
  user: ["User", userView],
  post: ["Post", async (...given) => (await import("./post.js")).postView(...given)],
  search: ["Search", async (...given) => (await import("./search.js")).searchView(...given)],
  map: ["Map", async (...given) => (await import("./map.js")).mapView(...given)],
  health: ["Health", async (...given) => (await import("./health.js")).healthView(...given)],
};
const main = document.getElementById("main");
const tabs = document.getElementById("tabs");
const links = new Map();
let leave = () => undefined;
let current = 0;

function frame() {
  for (const [name, [label]] of Object.entries(VIEWS)) {
    const link = h("a", { href: `#/${name}` }, icon(name), h("span", { text: label }));
    links.set(name, link);
    tabs.append(link);
  }
  const end = document.getElementById("bar-end");
  end.append(h("button", { class: "round", type: "button", "aria-label": "Switch between light and dark", on: { click: switchTheme } }, icon("theme")));
  if (keysNeeded) end.append(h("button", { class: "round", id: "signout", type: "button", "aria-label": "Sign out", hidden: !key.get(), on: { click: () => (key.clear(), signIn()) } }, icon("exit")));
}

function switchTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try {
    localStorage.setItem("mmrec.theme", root.dataset.theme);
  } catch {
    // It holds until the page is closed, then.
  }
  say(`${root.dataset.theme} theme`);
  dispatchEvent(new Event("mmrec-theme"));
}

async function route() {
  const mine = ++current;
  leave();
  leave = () => undefined;
  closeItem();
  if (keysNeeded && !key.get()) return signIn();
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/").filter(Boolean).map(decodeURIComponent);
  const view = VIEWS[name] ? name : "user";
  for (const [tab, link] of links) tab === view ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  document.title = `${VIEWS[view][0]} · mmrec studio`;
  const root = h("div", { class: `view view-${view}` });
  main.replaceChildren(root);
  scrollTo(0, 0);
  try {
    const left = await VIEWS[view][1](root, rest, new URLSearchParams(query));
    if (mine === current) leave = left ?? leave;
    else left?.();
  } catch (error) {
    if (error.status !== 401 && mine === current) root.append(alertBox(error));
  }
  return undefined;
}

function signIn(problem) {
  key.clear();
  current += 1;
  const out = document.getElementById("signout");
  if (out) out.hidden = true;
  const reason = h("div", { role: "alert" }, problem && alertBoxOf(problem));
  const input = h("input", { id: "key", type: "password", autocomplete: "current-password", required: true, spellcheck: "false", placeholder: "mmrec_…" });
  const enter = async (event) => {
    event.preventDefault();
    key.set(input.value.trim());
    try {
      await get("/v1/model");
      if (out) out.hidden = false;
      say("Signed in.");
      await route();
    } catch (error) {
      if (error.status !== 401) {
        key.clear();
        reason.replaceChildren(alertBoxOf(error));
      }
    }
  };
  main.replaceChildren(
    h("form", { class: "signin panel", on: { submit: enter } }, h("h1", { text: "Sign in" }), h("p", { class: "quiet", text: "This service asks for a key. One of scope read shows everything; publishing a post takes one of scope write." }), reason, h("label", { for: "key", text: "Key" }), input, h("button", { class: "button primary", type: "submit", text: "Sign in" }), h("p", { class: "help", text: "It is kept until this tab is closed, and sent to this service only." })),
  );
  input.focus();
}

const alertBoxOf = (problem) => h("div", { class: "notice bad" }, h("strong", { text: problem.title }), h("p", { text: problem.message }));

addEventListener("mmrec-signin", (event) => signIn(event.detail));
addEventListener("hashchange", route);
addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  const field = main.querySelector("[data-search]");
  if (field) field.focus();
  else location.hash = "#/search";
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

frame();
route();
if (!keysNeeded || key.get()) model().catch(() => undefined);
