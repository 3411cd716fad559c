// What answers, how busy it is, how quickly it answers, and what it refused.

import { get, model, text } from "./api.js";
import { alertBox, count, h, percent, plural } from "./dom.js";

const EVERY = 3000;
const KEPT = 40;
const SVG = "http://www.w3.org/2000/svg";

export async function healthView(root) {
  const state = { before: null, rates: [] };
  const body = h("div", { class: "health" });
  root.replaceChildren(h("header", { class: "view-head" }, h("div", {}, h("h1", { text: "Health" }), h("p", { class: "lead", text: "Of the process that answers this page, since it started." }))), body);
  let timer = 0;
  let stopped = false;
  const look = async () => {
    try {
      const [about, page, problems, ready] = await Promise.all([get("/v1/model"), text("/metrics"), get("/v1/problems"), get("/health/ready").catch((error) => error)]);
      if (!stopped) draw(body, state, about, figures(page), problems, ready);
    } catch (error) {
      if (!stopped && error.status !== 401) body.replaceChildren(alertBox(error));
    }
    if (!stopped) timer = setTimeout(look, EVERY);
  };
  await look();
  return () => {
    stopped = true;
    clearTimeout(timer);
  };
}

/** Read the text format of Prometheus: name, labels and value of every line. */
function figures(page) {
  const found = [];
  for (const line of page.split("\n")) {
    const match = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const labels = Object.fromEntries([...(match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, name, value]) => [name, value]));
    found.push({ name: match[1], labels, value: Number(match[3]) });
  }
  const all = (name) => found.filter((figure) => figure.name === name);
  const sum = (name, keep = () => true) => all(name).filter(({ labels }) => keep(labels)).reduce((total, { value }) => total + value, 0);
  return { all, sum };
}

/** The time within which a share of the requests was answered, in seconds, between the bounds of its bucket. */
function quantile(buckets, share) {
  const total = buckets.at(-1)?.value ?? 0;
  let [low, below] = [0, 0];
  for (const { labels, value } of buckets) {
    const high = Number(labels.le);
    if (value >= share * total) return Number.isFinite(high) ? low + ((high - low) * (share * total - below)) / Math.max(value - below, 1) : low;
    [low, below] = [high, value];
  }
  return low;
}

const milliseconds = (seconds) => (seconds < 0.01 ? `${(1000 * seconds).toFixed(1)} ms` : seconds < 1 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(1)} s`);

function draw(body, state, about, { all, sum }, problems, ready) {
  const answered = sum("mmrec_requests_total");
  const now = performance.now();
  if (state.before) state.rates.push(Math.max(0, (1000 * (answered - state.before.answered)) / (now - state.before.now)));
  if (state.rates.length > KEPT) state.rates.shift();
  state.before = { answered, now };
  const [hits, misses] = [sum("mmrec_cache_hits_total"), sum("mmrec_cache_misses_total")];
  const failed = sum("mmrec_requests_total", ({ status }) => status >= "500");
  const well = ready.status === "ready";
  const batches = sum("mmrec_batch_size_count");
  body.replaceChildren(
    h("div", { class: "tiles" },
      tile("Service", well ? "Ready" : "Not ready", well ? "It encoded a post just now" : ready.message, well ? "good" : "bad"),
      tile("Requests", state.rates.length ? `${state.rates.at(-1).toFixed(1)}/s` : "…", `${plural(answered, "answer")}, ${plural(failed, "failure")}`, "", spark(state.rates)),
      tile("In work", count(sum("mmrec_requests_in_work")), `${plural(sum("mmrec_queue_depth"), "post or user", "posts and users")} wait for the model`),
      tile("Cache", hits + misses ? percent(hits / (hits + misses)) : "–", `${count(hits)} hits, ${count(misses)} misses, ${count(sum("mmrec_cached_vectors"))} kept`),
      tile("Items", count(about.items), `${plural(about.published, "post")} published since the export`),
      tile("Batches", batches ? (sum("mmrec_batch_size_sum") / batches).toFixed(1) : "–", `jobs together, in ${plural(batches, "batch", "batches")}`),
    ),
    h("section", {}, h("h2", { text: "Model and index" }), h("dl", { class: "facts" }, facts(about).flatMap(([name, value]) => [h("dt", { text: name }), h("dd", { text: value })]))),
    h("section", {}, h("h2", { text: "Latency" }), latencies(all)),
    h("section", {}, h("div", { class: "row" }, h("h2", { text: "Recent problems" }), h("p", { class: "quiet", text: problems.total ? `The last ${problems.results.length} of ${count(problems.total)}; nothing of what was sent is kept` : "" })), refusals(problems)),
  );
}

function tile(title, value, note, tone = "", more = null) {
  return h("div", { class: `tile ${tone}` }, h("h3", { text: title }), h("p", { class: "big", text: value }), h("p", { class: "quiet", text: note }), more);
}

function spark(values) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 120 28");
  svg.setAttribute("class", "spark");
  svg.setAttribute("aria-hidden", "true");
  const most = Math.max(...values, 1);
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", values.map((value, place) => `${120 - 3 * (values.length - 1 - place)},${26 - (24 * value) / most}`).join(" "));
  svg.append(line);
  return svg;
}

function facts(about) {
  return [
    ["Run", about.run], ["Export", about.vectors], ["Index", about.index],
    ["Model", about.model], ["Feed", about.feed_hash], ["Reads", about.modalities.join(", ")],
    ["Vector", `${about.width} numbers`], ["History", `the last ${about.history_length} choices`],
    ["Users of the feed", count(about.users)], ["Filters on", about.attributes.join(", ") || "nothing"],
  ];
}

function latencies(all) {
  const requests = all("mmrec_requests_total");
  const routes = [...new Set(requests.map(({ labels }) => labels.route))];
  const rows = routes.map((route) => {
    const own = requests.filter(({ labels }) => labels.route === route);
    const buckets = all("mmrec_request_seconds_bucket").filter(({ labels }) => labels.route === route);
    const total = own.reduce((sum, { value }) => sum + value, 0);
    const refused = own.filter(({ labels }) => labels.status >= "400").reduce((sum, { value }) => sum + value, 0);
    return { route, total, refused, times: [0.5, 0.95, 0.99].map((share) => quantile(buckets, share)) };
  });
  rows.sort((one, other) => other.total - one.total);
  const head = ["Route", "Answers", "Refused", "p50", "p95", "p99"];
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Latency by route" }, h("table", {}, h("thead", {}, h("tr", {}, head.map((text) => h("th", { scope: "col", text })))), h("tbody", {}, rows.map((row) => h("tr", {}, h("th", { scope: "row", text: row.route }), h("td", { class: "number", text: count(row.total) }), h("td", { class: "number", text: count(row.refused) }), row.times.map((time) => h("td", { class: "number", text: milliseconds(time) })))))));
}

function refusals({ results }) {
  if (!results.length) return h("p", { class: "quiet", text: "None since the start." });
  const time = new Intl.DateTimeFormat("en", { timeStyle: "medium" });
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Recent problems" }, h("table", {}, h("thead", {}, h("tr", {}, ["When", "Route", "Status", "Why", "Request"].map((text) => h("th", { scope: "col", text })))), h("tbody", {}, results.map((one) => h("tr", {}, h("td", { text: time.format(new Date(one.at)) }), h("td", { text: one.route }), h("td", { text: one.status }), h("td", { text: one.reason }), h("td", { class: "mono", text: one.request_id.slice(0, 8) }))))));
}
