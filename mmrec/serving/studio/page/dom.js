// Elements without markup: everything that came from the service is set as text, never parsed.

const SVG = "http://www.w3.org/2000/svg";

const ICONS = {
  user: "M20 21a8 8 0 0 0-16 0M12 13a5 5 0 1 0 0-10 5 5 0 0 0 0 10",
  post: "M21 12v7a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2V5a2 2 0 0 1 2-2h7M18 2.500v6M15 5.500h6M3 17l5-5 4 4 3-3 6 6",
  search: "M11 19a8 8 0 1 0 0-16 8 8 0 0 0 0 16M21 21l-4.300-4.300",
  map: "M6 7h.01M17 5h.01M11.500 11h.01M5 17h.01M14 17h.01M19 12.500h.01M9 21h.01",
  health: "M3 12h4l3-8 4 16 3-8h4",
  theme: "M12 3a9 9 0 1 1 0 18 9 9 0 0 1 0-18M12 3v18M16 4.500v15M20 8v8",
  picture: "M5 4h14a2 2 0 0 1 2 2v12a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2V6a2 2 0 0 1 2-2M3 16l5-5 4 4 3-3 6 6M8.500 9h.01",
  exit: "M9 21H5a2 2 0 0 1-2-2V5a2 2 0 0 1 2-2h4M16 17l5-5-5-5M21 12H9",
  close: "M6 6l12 12M18 6L6 18",
  check: "M4 12.500l5.500 5.500L20 6.500",
};

/** Make an element. `props`: attributes; `on` a map of listeners; `text` its text. Empty children are skipped. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "text") element.textContent = value;
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "class") element.className = value;
    else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", `icon icon-${name}`);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** Say something to those who cannot see it happen. */
export function say(text) {
  document.getElementById("status").textContent = text;
}

/** Call `action` once the calls to what is returned have stopped for a while. */
export function debounced(action, milliseconds) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...given), milliseconds);
  };
}

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

const whole = new Intl.NumberFormat("en");
export const count = (number) => whole.format(number);
export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
export const score = (number) => (number === null || number === undefined ? "–" : number.toFixed(2));
export const percent = (share) => `${Math.round(100 * share)} %`;

const day = new Intl.DateTimeFormat("en", { day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });
export const date = (milliseconds) => (milliseconds === null ? "" : day.format(new Date(milliseconds)));

/** Show what went wrong where it did; the error's own words. */
export function alertBox(error) {
  return h("div", { class: "notice bad", role: "alert" }, h("strong", { text: error.title ?? "That did not work" }), h("p", { text: error.message }));
}

export function emptyBox(title, text) {
  return h("div", { class: "empty" }, h("strong", { text: title }), text && h("p", { text }));
}
