"use strict";
// Draws what /events sends. Text goes in through textContent only: names come from outside.

const RETRY_MS = 2000;
const STALE_MS = 5000;
const LETTER_PX = 7;
let key = "";
let lastEvent = 0;

const byId = (id) => document.getElementById(id);

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

function svg(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function seconds(value) {
  if (value === null || value === undefined) return "-";
  if (value >= 10) return value.toFixed(1) + " s";
  return value >= 1 ? value.toFixed(2) + " s" : (value * 1000).toFixed(value < 0.1 ? 1 : 0) + " ms";
}

const percent = (value) => Math.round(100 * value) + " %";
const sum = (values) => values.reduce((total, value) => total + value, 0);

function state(text, good) {
  const line = byId("state");
  if (line.textContent !== text) line.textContent = text;
  line.className = "state " + (good ? "good" : "bad");
}

function row(cells) {
  return element("tr", {}, ...cells.map((text) => element("td", { textContent: text })));
}

function tiles(now) {
  const engines = now.engines;
  const kv = engines.length ? Math.max(...engines.map((engine) => engine.kv_use)) : 0;
  const shown = [
    ["In flight", now.in_flight],
    ["Running", sum(engines.map((engine) => engine.running))],
    ["Waiting", sum(engines.map((engine) => engine.waiting))],
    ["Fullest KV", percent(kv)],
    ["Tokens out", sum(engines.map((engine) => engine.generation_tokens)).toLocaleString("en")],
    ["Preemptions", sum(engines.map((engine) => engine.preemptions)).toLocaleString("en")],
  ];
  byId("tiles").replaceChildren(...shown.map(([label, value]) => element("li", {},
    element("span", { className: "soft", textContent: label }),
    element("strong", { textContent: String(value) }))));
}

function latency(now) {
  byId("latency-note").textContent = `Last ${Math.round(now.window_s / 60)} minutes`;
  const line = (name, found) => row([name, ...["p50", "p90", "p99"].map((p) => seconds(found && found[p])),
    found ? found.count.toLocaleString("en") : "0"]);
  byId("latency").replaceChildren(line("TTFT", now.ttft_s), line("ITL", now.itl_s));
}

function label(engine) {
  const marks = [engine.role];
  if (!engine.alive) marks.push("down");
  if (engine.draining) marks.push("draining");
  return `${engine.name} (${marks.join(", ")})`;
}

function plan(engines) {
  const wide = byId("plan").clientWidth || 600;
  const rowHeight = 44, top = 24, layers = Math.max(1, ...engines.map((engine) => engine.end_layer));
  const x = (layer) => (layer / layers) * (wide - 2) + 1;
  const height = top + rowHeight * engines.length + 4;
  const words = engines.map((engine) => `${label(engine)}: layers ${engine.start_layer} to ` +
    `${engine.end_layer} of ${engine.model}, KV ${percent(engine.kv_use)}, ` +
    `${engine.running} running, ${engine.waiting} waiting`);
  const drawing = svg("svg", { viewBox: `0 0 ${wide} ${height}`, role: "img", "aria-label": words.join("; ") });
  const step = Math.max(1, Math.ceil(layers / Math.max(2, Math.floor(wide / 70))));
  for (let layer = 0; layer <= layers; layer += step) {
    drawing.append(svg("line", { class: "grid", x1: x(layer), x2: x(layer), y1: top - 6, y2: height }));
    const anchor = layer === 0 ? "start" : layer === layers ? "end" : "middle";
    drawing.append(svg("text", { class: "axis", x: x(layer), y: 12, "text-anchor": anchor }, layer));
  }
  engines.forEach((engine, index) => {
    const y = top + index * rowHeight;
    const left = x(engine.start_layer), width = x(engine.end_layer) - left;
    const text = `${label(engine)}: ${engine.running} running, ${engine.waiting} waiting`;
    const overflows = left + LETTER_PX * text.length > wide;
    const anchored = overflows ? { x: wide - 1, "text-anchor": "end" } : { x: left };
    const group = svg("g", {});
    group.append(svg("title", {}, words[index]));
    group.append(svg("text", { ...anchored, y: y + 13 }, text));
    group.append(svg("rect", { class: engine.alive ? "bar" : "down", x: left, y: y + 18, width, height: 16, rx: 3 }));
    group.append(svg("rect", { class: "fill", x: left, y: y + 18, width: width * Math.min(1, engine.kv_use), height: 16, rx: 3 }));
    drawing.append(group);
  });
  byId("plan").replaceChildren(drawing);
}

function nodes(engines) {
  const load = new Map();
  for (const engine of engines) {
    for (const node of engine.nodes) load.set(node, (load.get(node) || 0) + engine.busy_share);
  }
  byId("nodes").replaceChildren(...[...load].map(([node, share]) => element("li", {},
    element("span", { textContent: node }), element("span", { textContent: percent(share) }),
    element("meter", { min: 0, max: 1, value: Math.min(1, share), ariaLabel: `Load of ${node}` }))));
}

function recent(requests) {
  const rows = requests.map((request) => row([request.id.slice(0, 16), request.model, request.class || "-",
    String(request.prompt_tokens), String(request.completion_tokens), seconds(request.ttft_s),
    seconds(request.e2e_s), request.outcome === "ok" ? request.finish_reason : request.outcome]));
  byId("recent").replaceChildren(...rows);
}

function draw(now) {
  lastEvent = Date.now();
  state(now.ready ? "Serving" : "Not ready", now.ready);
  byId("models").textContent = now.models.map((model) => model.name).join(", ");
  tiles(now);
  latency(now);
  plan(now.engines);
  nodes(now.engines);
  recent(now.recent);
}

async function follow() {
  const headers = key ? { Authorization: "Bearer " + key } : {};
  const response = await fetch("/events", { headers, cache: "no-store" });
  if (response.status === 401) {
    byId("key-form").hidden = false;
    state(key ? "Wrong key" : "A key is needed", false);
    return false;
  }
  if (!response.ok) throw new Error(`/events answered ${response.status}`);
  byId("key-form").hidden = true;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return true;
    const events = (text + value).split("\n\n");
    text = events.pop();
    if (events.length) draw(JSON.parse(events[events.length - 1].slice("data: ".length)));
  }
}

async function keepFollowing() {
  for (;;) {
    try {
      if (!(await follow())) return;
    } catch (error) {
      console.warn(error);
    }
    state("Connection lost, trying again", false);
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value;
  keepFollowing();
});
setInterval(() => {
  if (lastEvent && Date.now() - lastEvent > STALE_MS) state("No news from the server", false);
}, STALE_MS);
keepFollowing();
