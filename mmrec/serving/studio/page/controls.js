// Sliders, a place to drop a picture, and switches.

import { h, icon } from "./dom.js";

const TYPES = "image/jpeg,image/png,image/webp,image/gif,image/bmp,image/avif";

/** A slider from 0 to 1 that says what it does; `change` gets the number while it moves. */
export function slider({ label, help, value, change }) {
  const id = `slider-${label.toLowerCase().replaceAll(/\W+/g, "-")}`;
  const shown = h("output", { for: id, text: words(value) });
  const input = h("input", { id, type: "range", min: 0, max: 1, step: 0.05, value: String(value), "aria-describedby": help && `${id}-help` });
  const paint = () => {
    input.style.setProperty("--part", `${100 * Number(input.value)}%`);
    shown.textContent = words(Number(input.value));
  };
  input.addEventListener("input", () => {
    paint();
    change(Number(input.value));
  });
  paint();
  const element = h("div", { class: "slider" }, h("label", { for: id, text: label }), shown, input, help && h("p", { id: `${id}-help`, class: "help", text: help }));
  return {
    element,
    set(number) {
      input.value = String(number);
      paint();
    },
  };
}

const words = (value) => `${Math.round(100 * value)} %`;

/** A place for one picture: drop it, paste it, or choose it. `change` gets the file, or null when it is taken away. */
export function pictureDrop({ label, change }) {
  let shown = "";
  const input = h("input", { class: "unseen", type: "file", accept: TYPES, "aria-label": label });
  const preview = h("img", { alt: "", hidden: true });
  const clear = h("button", { class: "round", type: "button", "aria-label": "Take the picture away", hidden: true }, icon("close"));
  const hint = h("span", { class: "drop-hint" }, icon("picture"), h("span", { text: label }), h("small", { text: "Drop, paste, or choose a file" }));
  const area = h("label", { class: "drop" }, input, hint, preview);
  const element = h("div", { class: "drop-box" }, area, clear);

  const show = (file) => {
    if (shown) URL.revokeObjectURL(shown);
    shown = file ? URL.createObjectURL(file) : "";
    preview.hidden = clear.hidden = !file;
    hint.hidden = Boolean(file);
    if (file) preview.src = shown;
    else preview.removeAttribute("src");
  };
  const take = (file) => {
    if (file && !file.type.startsWith("image/")) return;
    show(file);
    change(file);
  };
  preview.addEventListener("error", () => shown && (hint.hidden = false, preview.hidden = true));
  input.addEventListener("change", () => input.files[0] && take(input.files[0]));
  clear.addEventListener("click", () => {
    input.value = "";
    take(null);
    input.focus();
  });
  area.addEventListener("dragover", (event) => {
    event.preventDefault();
    area.classList.add("over");
  });
  area.addEventListener("dragleave", () => area.classList.remove("over"));
  area.addEventListener("drop", (event) => {
    event.preventDefault();
    area.classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) take(file);
  });
  return { element, paste: (event) => event.clipboardData?.files[0] && take(event.clipboardData.files[0]), clear: () => take(null) };
}

/** A few choices of which one holds. */
export function choices({ label, options, value, change }) {
  const name = `choice-${label.toLowerCase().replaceAll(/\W+/g, "-")}`;
  return h(
    "fieldset",
    { class: "choices" },
    h("legend", { class: "unseen", text: label }),
    options.map(([key, text]) => h("label", {}, h("input", { type: "radio", name, value: key, checked: key === value, on: { change: () => change(key) } }), h("span", { text }))),
  );
}

/** A switch. */
export function toggle({ label, checked, change }) {
  return h("label", { class: "toggle" }, h("input", { type: "checkbox", role: "switch", checked, on: { change: (event) => change(event.target.checked) } }), h("span", { text: label }));
}

/** A text field with a list of suggestions that arrow keys walk through (the combobox pattern of ARIA). */
export function finder({ label, placeholder, suggest, choose }) {
  let found = [];
  let active = -1;
  let asked = 0;
  const list = h("ul", { class: "suggestions", id: "suggestions", role: "listbox", "aria-label": label, hidden: true });
  const input = h("input", {
    type: "search", role: "combobox", placeholder, "aria-label": label, autocomplete: "off", spellcheck: "false",
    "aria-expanded": "false", "aria-controls": "suggestions", "aria-autocomplete": "list", data: { search: "" },
  });
  const close = () => {
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
    active = -1;
  };
  const take = (entry) => {
    close();
    input.value = "";
    choose(entry);
  };
  const light = (place) => {
    active = (place + found.length) % found.length;
    [...list.children].forEach((option, index) => option.setAttribute("aria-selected", String(index === active)));
    input.setAttribute("aria-activedescendant", `suggestion-${active}`);
    list.children[active].scrollIntoView({ block: "nearest" });
  };
  const open = async () => {
    const mine = ++asked;
    const entries = await suggest(input.value.trim()).catch(() => []);
    if (mine !== asked || document.activeElement !== input) return;
    found = entries;
    active = -1;
    list.replaceChildren(
      ...found.map((entry, index) =>
        h("li", { id: `suggestion-${index}`, role: "option", "aria-selected": "false", on: { mousedown: (event) => (event.preventDefault(), take(entry)) } }, h("span", { text: entry.text }), h("small", { text: entry.note })),
      ),
    );
    list.hidden = !found.length;
    input.setAttribute("aria-expanded", String(found.length > 0));
  };
  input.addEventListener("input", open);
  input.addEventListener("focus", open);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" && found.length) (event.preventDefault(), light(active + 1));
    else if (event.key === "ArrowUp" && found.length) (event.preventDefault(), light(active < 0 ? found.length - 1 : active - 1));
    else if (event.key === "Escape") close();
    else if (event.key === "Enter") {
      event.preventDefault();
      const text = input.value.trim();
      if (active >= 0) take(found[active]);
      else if (text) take(found.find((entry) => entry.text === text) ?? { id: text, text });
    }
  });
  return h("div", { class: "finder" }, icon("search"), input, list);
}
