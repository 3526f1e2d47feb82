// Draws what /events sends. Whatever comes from topics becomes text (textContent) or a number,
// never markup; images are asked for by their number.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const STALE_MS = 6000;
const RETRY_MS = 5000;
const WIDTH = 300;
const HEIGHT = 80;
const drawn = { results: new Map(), dead: new Map() };
let paused = false;
let heardAt = Date.now();
let trouble = "";

const byId = (id) => document.getElementById(id);

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function makeSvg(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function renderNumber(value, digits = 0) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString(undefined, { maximumFractionDigits: digits });
}

function renderSeconds(value) {
  if (value === null || value === undefined) return "–";
  return value < 1 ? `${Math.round(value * 1000)} ms` : `${renderNumber(value, 1)} s`;
}

function renderTime(ms) {
  return ms === null ? "" : new Date(ms).toLocaleTimeString();
}

function renderScore(score) {
  return score === null ? "" : `${(100 * score).toFixed(1)} %`;
}

// A list of terms: its elements are made once, and only their texts change.
function fillTerms(list, terms) {
  while (list.children.length > terms.length) list.lastChild.remove();
  terms.forEach(([name, value], index) => {
    let pair = list.children[index];
    if (!pair) {
      pair = make("div");
      pair.append(make("dt"), make("dd"));
      list.append(pair);
    }
    pair.children[0].textContent = name;
    pair.children[1].textContent = value;
  });
}

function drawFigures(page) {
  const { counts, latency } = page;
  const terms = [
    ["settled per second", renderNumber(page.rate, 1)],
    ["lag", renderNumber(page.lag)],
    ["latency, median", renderSeconds(latency && latency.median)],
    ["latency, 95 %", renderSeconds(latency && latency.p95)],
    ["predictions", renderNumber(counts.results)],
    ["dead letters", renderNumber(counts.dead_letters)],
    ["members of the group", renderNumber(page.members)],
  ];
  if (counts.labelled) {
    const share = (100 * counts.right) / counts.labelled;
    terms.push([`right, of ${renderNumber(counts.labelled)} labelled`, `${share.toFixed(1)} %`]);
  }
  fillTerms(byId("figures"), terms);
}

function findFigure(name) {
  let figure = byId(`curve-${name}`);
  if (!figure) {
    figure = make("figure");
    figure.id = `curve-${name}`;
    const options = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" };
    figure.append(make("figcaption"), makeSvg("svg", options));
    byId("curves").append(figure);
  }
  return figure;
}

// Lines of numbers, null where there is none; they end at the right edge.
function drawLines(name, caption, lines, count) {
  const figure = findFigure(name);
  const highest = Math.max(...lines.flat().map((value) => value ?? 0), 0);
  const top = highest || 1;
  const svg = figure.lastChild;
  svg.replaceChildren();
  lines.forEach((line, index) => {
    const points = line.flatMap((value, at) => {
      if (value === null) return [];
      const x = WIDTH - ((line.length - 1 - at) * WIDTH) / (count - 1);
      return [`${x.toFixed(1)},${(HEIGHT - 2 - (value / top) * (HEIGHT - 6)).toFixed(1)}`];
    });
    if (points.length === 1) points.push(points[0]); // its round caps make a dot
    svg.append(makeSvg("polyline", { points: points.join(" "), class: index ? "second" : "first" }));
  });
  figure.firstChild.textContent = caption(highest);
  svg.setAttribute("aria-label", caption(highest));
}

function drawClasses(page, count) {
  const figure = findFigure("classes");
  const svg = figure.lastChild;
  const width = WIDTH / count;
  svg.replaceChildren();
  page.slots.forEach((slot, at) => {
    const total = slot.classes.reduce((sum, value) => sum + value, 0);
    let y = 0;
    slot.classes.forEach((value, index) => {
      if (!value) return;
      const height = (value / total) * HEIGHT;
      const x = WIDTH - (page.slots.length - at) * width;
      const size = { x, y, width: width * 0.92, height };
      svg.append(makeSvg("rect", { ...size, class: `c${colour(page, index)}` }));
      y += height;
    });
  });
  figure.firstChild.textContent = "predicted classes, as shares";
  svg.setAttribute("aria-label", "predicted classes, as shares; the list below has their numbers");
  drawLegend(page);
}

const colour = (page, index) => (index === page.classes.length - 1 ? 12 : index);

function drawLegend(page) {
  const sums = page.classes.map((_, index) =>
    page.slots.reduce((sum, slot) => sum + slot.classes[index], 0));
  const items = page.classes.flatMap((name, index) => {
    if (!sums[index]) return [];
    const item = make("li");
    const swatch = makeSvg("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" });
    swatch.append(makeSvg("rect", { width: 10, height: 10, class: `c${colour(page, index)}` }));
    item.append(swatch, make("span", `${name} ${renderNumber(sums[index])}`));
    return [item];
  });
  byId("legend").replaceChildren(...items);
}

function drawCurves(page) {
  const count = 60;
  const perSecond = page.slots.map((slot) => (slot.results + slot.dead_letters) / page.slot_seconds);
  const whole = perSecond.slice(0, -1); // the last one has not ended
  drawLines("rate", (top) => `settled per second, at most ${renderNumber(top, 1)}`, [whole], count);
  drawLines("lag", (top) => `lag, at most ${renderNumber(top)}`, [page.slots.map((slot) => slot.lag)], count);
  const latencies = ["median", "p95"].map((name) =>
    page.slots.map((slot) => (slot.latency ? slot.latency[name] : null)));
  drawLines("latency", (top) => `latency, median and 95 % (dashed), at most ${renderSeconds(top)}`, latencies, count);
  drawClasses(page, count);
}

const DRIFT_NAMES = {
  class_mix: "classes (stability index)",
  confidence: "mean confidence",
  near_ties: "share of near-ties",
};

// A figure beyond the limit of its alert is marked in a word too, not by colour alone.
function drawDrift({ figures, why }) {
  const terms = figures.map(({ name, value, limit }) => {
    const beyond = value !== null && Math.abs(value) > limit;
    return [`${DRIFT_NAMES[name]}, alert above ${limit}`, `${renderNumber(value, 4)}${beyond ? " (alert)" : ""}`, beyond];
  });
  fillTerms(byId("drift"), terms);
  terms.forEach(([, , beyond], index) => byId("drift").children[index].classList.toggle("bad", beyond));
  byId("drift-note").textContent = why;
}

function drawPartitions(page) {
  const rows = page.partitions.map(({ name, lag, rate }) => {
    const row = make("tr");
    row.append(make("td", name), make("td", renderNumber(lag)), make("td", renderNumber(rate, 1)));
    return row;
  });
  byId("partitions").replaceChildren(...rows);
  const hidden = page.partition_count - rows.length;
  byId("partitions-note").textContent = hidden > 0
    ? `${renderNumber(hidden)} more partitions have a smaller lag.`
    : rows.length ? "" : "The lag is not known.";
}

function makePicture(entry) {
  if (!entry.image) return make("span", entry.why, "picture");
  const image = make("img", undefined, "picture");
  image.alt = entry.label ? `predicted as ${entry.label}` : `of ${entry.id}`;
  image.decoding = "async";
  image.src = `/image/${entry.number}`;
  image.addEventListener("error", () => image.replaceWith(make("span", "it cannot be shown", "picture")));
  return image;
}

function makeResult(entry) {
  const item = make("li");
  const tile = make("button", undefined, "tile");
  tile.type = "button";
  tile.append(makePicture(entry), make("span", entry.label || "no class", "label"));
  tile.append(make("span", renderScore(entry.score), "quiet"));
  if (entry.expected) {
    const right = entry.expected === entry.class;
    tile.append(make("span", right ? "✓ as labelled" : `✗ labelled ${entry.expected}`, right ? "right" : "wrong"));
  }
  tile.addEventListener("click", () => openDetail(entry, tile));
  item.append(tile);
  return item;
}

function openDetail(entry, tile) {
  byId("detail-title").textContent = entry.label || "no class";
  const picture = tile.querySelector(".picture");
  byId("detail-image").replaceChildren(picture.cloneNode(true));
  const terms = [["record", entry.id], ["name", entry.name], ["time", renderTime(entry.time)],
    ["latency", renderSeconds(entry.latency)], ["labelled", entry.expected], ["answer", entry.detail]];
  const likely = entry.top.map(({ label, score }) => [label, renderScore(score)]);
  fillTerms(byId("detail-fields"), [...likely, ...terms.filter(([, value]) => value)]);
  byId("detail").showModal();
}

function makeDeadLetter(entry) {
  const item = make("li");
  const text = make("div", undefined, "text");
  const tries = entry.attempts === null ? "" : `tries ${entry.attempts}`;
  const status = entry.status === null ? "" : `status ${entry.status}`;
  const rest = [renderTime(entry.time), entry.id, entry.name, tries, status].filter(Boolean);
  text.append(make("div", entry.reason, "reason"), make("div", entry.detail));
  text.append(make("div", rest.join(" · "), "quiet"));
  item.append(makePicture(entry), text);
  return item;
}

// What stays is not made anew: it keeps its focus, and its image is not fetched again.
function drawEntries(list, known, entries, makeItem) {
  const wanted = new Set(entries.map((entry) => entry.number));
  for (const [number, item] of known) {
    if (!wanted.has(number)) {
      item.remove();
      known.delete(number);
    }
  }
  for (const entry of [...entries].reverse()) {
    if (!known.has(entry.number)) {
      known.set(entry.number, makeItem(entry));
      list.prepend(known.get(entry.number));
    }
  }
}

function draw(page) {
  fillTerms(byId("about"), Object.entries(page.about));
  drawFigures(page);
  drawCurves(page);
  drawDrift(page.drift);
  drawPartitions(page);
  drawEntries(byId("results"), drawn.results, page.results, makeResult);
  byId("reasons").replaceChildren(...page.reasons.map(([reason, count]) => make("li", `${renderNumber(count)} ${reason}`)));
  drawEntries(byId("dead"), drawn.dead, page.dead_letters, makeDeadLetter);
}

function showState() {
  const silent = Date.now() - heardAt;
  const state = silent > STALE_MS ? "no news: the page's program is away, or has too many viewers"
    : trouble || (paused ? "paused" : "live");
  const place = byId("state");
  if (place.textContent !== state) place.textContent = state;
  place.className = trouble || silent > STALE_MS ? "bad" : "";
}

function connect() {
  const source = new EventSource("/events");
  source.onmessage = (event) => {
    const page = JSON.parse(event.data);
    heardAt = Date.now();
    trouble = page.trouble || "";
    if (!paused && page.about) draw(page);
    showState();
  };
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, RETRY_MS);
    showState();
  };
}

byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  byId("pause").textContent = paused ? "Go on" : "Pause";
  showState();
});
setInterval(showState, 1000);
connect();
