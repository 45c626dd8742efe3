"use strict";
// Everything interactive: choosing tables, the slice viewer, the worst cases. Reads only #data.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const modalities = Object.keys(data.modalities);
const colours = data.colours;
const regions = Object.keys(colours);
const inside = data.inside;
const state = { case: data.first, sees: "", picture: "", slice: -1 };
const decoded = new Map();
const pictures = new Map();

const shown = (subset) => subset.split("+").map((m) => data.modalities[m]).join(" + ");
const fixed = (value, digits) => (value === null ? "–" : value.toFixed(digits));
const signed = (value) =>
  value === null ? "–" : (value < 0 ? "−" : "+") + Math.abs(value).toFixed(1);
const metrics = Object.keys(data.metrics);
const scaled = (metric, value) =>
  fixed(value === null ? null : data.metrics[metric] * value, 1);
const minus = (a, b) => (a === null || b === null ? null : 100 * (a - b));
const caseNamed = (name) => data.cases.find((one) => one.name === name);

function element(tag, text, attributes = {}) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.textContent = text;
  return made;
}

function row(head, cells) {
  const line = document.createElement("tr");
  const first = element("th", "", { scope: "row" });
  first.append(head);
  line.append(first, ...cells.map((cell) => element("td", cell)));
  return line;
}

// ---- tables that share a place -------------------------------------------------------------
function choosePart(group) {
  const chosen = [...document.querySelectorAll(`input[data-group=${group}]:checked`)]
    .map((input) => input.value).join("-");
  for (const part of document.querySelectorAll(`[data-${group}]:not(input)`)) {
    const name = part.dataset[group];
    part.hidden = !(chosen === name || chosen.startsWith(`${name}-`));
  }
}

// ---- slices --------------------------------------------------------------------------------
function runs(text, length) {
  const bytes = atob(text), labels = new Uint8Array(length);
  let at = 0, i = 0;
  while (i < bytes.length) {
    let token = 0, unit = 1, byte;
    do {
      byte = bytes.charCodeAt(i++);
      token += (byte & 127) * unit;
      unit *= 128;
    } while (byte > 127);
    const end = at + Math.floor(token / 8);
    labels.fill(token & 7, at, end);
    at = end;
  }
  return labels;
}

function labelsOf(name) {
  if (!decoded.has(name)) {
    const entry = data.slices[name];
    const voxels = entry.size.reduce((a, b) => a * b);
    decoded.clear(); // one case at a time: a large one takes tens of megabytes
    decoded.set(name, {
      truth: entry.truth ? runs(entry.truth, voxels) : null,
      predicted: runs(entry.labels, voxels * entry.subsets.length),
    });
  }
  return decoded.get(name);
}

function pictureOf(name, modality) {
  const key = `${name}/${modality}`;
  if (!pictures.has(key)) {
    const picture = new Image();
    picture.onload = drawSlices;
    picture.src = data.slices[name].images[modality];
    pictures.set(key, picture);
  }
  return pictures.get(key);
}

function outline(context, labels, start, height, width, region, scale) {
  const member = inside[region];
  const at = (x, y) =>
    x >= 0 && y >= 0 && x < width && y < height && member[labels[start + y * width + x]] === 1;
  context.beginPath();
  const line = (x0, y0, x1, y1) => {
    context.moveTo(x0 * scale[0], y0 * scale[1]);
    context.lineTo(x1 * scale[0], y1 * scale[1]);
  };
  for (let y = 0; y <= height; y++) {
    for (let x = 0; x <= width; x++) {
      const here = at(x, y);
      if (here !== at(x - 1, y)) line(x, y, x, y + 1);
      if (here !== at(x, y - 1)) line(x, y, x + 1, y);
    }
  }
  context.strokeStyle = colours[region];
  // ET often shares its edge with TC: the wider line of TC shows on both sides of it.
  // Widths are those on the screen, however small a phone shows the picture.
  const shrunk = context.canvas.width / (context.canvas.clientWidth || context.canvas.width);
  context.lineWidth = shrunk * (region === "TC" ? 2.6 : 1.3);
  context.stroke();
}

function drawOn(canvas, entry, labels, volume) {
  const [, height, width] = entry.size;
  const [tall, wide] = entry.spacing;
  const zoom = Math.max(2, Math.round(720 / (width * wide)));
  const scale = [wide * zoom, tall * zoom];
  canvas.width = Math.round(width * scale[0]);
  canvas.height = Math.round(height * scale[1]);
  const context = canvas.getContext("2d");
  const picture = pictureOf(state.case, modalities.indexOf(state.picture));
  if (picture.complete && picture.naturalWidth) {
    context.drawImage(picture, 0, state.slice * height, width, height,
      0, 0, canvas.width, canvas.height);
  }
  if (!labels) return;
  const start = (volume * entry.size[0] + state.slice) * height * width;
  for (const region of regions) outline(context, labels, start, height, width, region, scale);
}

function drawSlices() {
  const entry = data.slices[state.case];
  document.querySelector(".look").hidden = !entry;
  byId("slice").closest("label").hidden = byId("picture").closest("fieldset").hidden = !entry;
  if (!entry) return;
  const { truth, predicted } = labelsOf(state.case);
  const volume = entry.subsets.indexOf(state.sees);
  drawOn(byId("truth"), entry, truth, 0);
  drawOn(byId("predicted"), entry, volume < 0 ? null : predicted, volume);
  const place = `${state.slice + 1} of ${entry.size[0]}, index ${entry.positions[state.slice]} in the file`;
  byId("where").textContent = place;
  byId("from").textContent = volume < 0
    ? `No prediction was kept for ${shown(state.sees)}`
    : `Prediction from ${shown(state.sees)}`;
  byId("unseen").textContent = state.sees.split("+").includes(state.picture)
    ? "" : `The network did not see this ${data.modalities[state.picture]} picture.`;
  for (const [id, who] of [["truth", "expert"], ["predicted", `predicted from ${shown(state.sees)}`]]) {
    byId(id).setAttribute("aria-label",
      `${data.modalities[state.picture]}, slice ${place}, ${who} contours`);
  }
}

// ---- numbers of the chosen case ------------------------------------------------------------
function writeNumbers() {
  const one = caseNamed(state.case);
  const index = data.subsets.indexOf(state.sees);
  const has = index >= 0 && one.dice[index];
  byId("scores").caption.textContent = has
    ? `${one.name} from ${shown(state.sees)}`
    : `${one.name} was not scored with ${shown(state.sees)}`;
  byId("scores").tBodies[0].replaceChildren(...regions.map((region, r) => row(region, has ? [
    ...metrics.map((metric) => scaled(metric, one[metric][index][r])),
    fixed(one.truth[r], 1),
    fixed(one.predicted[index][r], 1),
  ] : ["–", "–", ...metrics.map(() => "–")])));
  writeGains(one, has ? index : -1);
  byId("shares").hidden = !one.shapley;
  byId("shares").tBodies[0].replaceChildren(...(one.shapley ? modalities.map((modality, m) => row(
    data.modalities[modality], regions.map((_, r) => signed(one.shapley[r][m])))) : []));
}

function writeGains(one, index) {
  const lines = [];
  for (const modality of modalities) {
    if (index < 0 || state.sees.split("+").includes(modality)) continue;
    const more = modalities.filter((m) => m === modality || state.sees.split("+").includes(m));
    const other = data.subsets.indexOf(more.join("+"));
    if (other < 0 || !one.dice[other]) continue;
    lines.push(row(`+ ${data.modalities[modality]}`, regions.map((_, r) =>
      signed(minus(one.dice[other][r], one.dice[index][r])))));
  }
  byId("more").hidden = !lines.length;
  byId("hint").hidden = lines.length > 0;
  byId("more").tBodies[0].replaceChildren(...lines);
}

function writeWorst() {
  const region = byId("worst-region").selectedIndex - 1;
  const subset = byId("worst-subset").selectedIndex - 1;
  const mean = (values) => {
    const there = values.filter((value) => value !== null && value !== undefined);
    return there.length ? there.reduce((a, b) => a + b) / there.length : null;
  };
  const over = (grid) => mean(grid.filter((line, s) => line && (subset < 0 || s === subset))
    .map((line) => (region < 0 ? mean(line) : line[region])));
  const sum = (line) => (region < 0 ? line[0] : line[region]);
  const ranked = data.cases.map((one) => ({ one, dice: over(one.dice) }))
    .filter((entry) => entry.dice !== null)
    .sort((a, b) => a.dice - b.dice).slice(0, 10);
  byId("worst").caption.textContent =
    `The ${ranked.length} lowest of ${data.cases.length} cases; volumes of ${regions[Math.max(0, region)]}`;
  byId("worst").tBodies[0].replaceChildren(...ranked.map(({ one }) => {
    const button = element("button", one.name, { type: "button" });
    button.onclick = () => {
      choose({ case: one.name, sees: subset < 0 ? state.sees : data.subsets[subset] });
      byId("patients").scrollIntoView();
    };
    const predicted = mean(one.predicted.filter((line, s) => line && (subset < 0 || s === subset)).map(sum));
    return row(button, [...metrics.map((metric) => scaled(metric, over(one[metric]))),
      fixed(sum(one.truth), 1), fixed(predicted, 1)]);
  }));
}

// ---- state ---------------------------------------------------------------------------------
function choose(changes) {
  const otherCase = changes.case !== undefined && changes.case !== state.case;
  Object.assign(state, changes);
  const one = caseNamed(state.case);
  const scored = data.subsets.filter((_, i) => one.dice[i]);
  if (!scored.includes(state.sees)) state.sees = scored[scored.length - 1];
  const entry = data.slices[state.case];
  if (entry) {
    const largest = Math.floor(entry.size[0] / 2);
    if (otherCase && changes.slice === undefined) state.slice = largest;
    if (!(state.slice >= 0 && state.slice < entry.size[0])) state.slice = largest;
    const there = modalities.filter((_, m) => entry.images[m]);
    if (!there.includes(state.picture)) state.picture = there[there.length - 1];
    byId("slice").max = entry.size[0] - 1;
    byId("slice").value = state.slice;
  }
  byId("case").value = state.case;
  for (const input of document.querySelectorAll("#sees input")) {
    input.checked = state.sees.split("+").includes(input.value);
    input.disabled = !scored.some((subset) => subset.split("+").includes(input.value));
  }
  for (const input of document.querySelectorAll("#picture input")) {
    input.checked = input.value === state.picture;
    input.disabled = !(entry && entry.images[modalities.indexOf(input.value)]);
  }
  writeNumbers();
  drawSlices();
}

function fromAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (!caseNamed(asked.get("case"))) return {};
  const changes = { case: asked.get("case") };
  if (asked.has("sees")) changes.sees = asked.get("sees").replaceAll(" ", "+");
  if (asked.has("picture")) changes.picture = asked.get("picture");
  if (asked.has("slice")) changes.slice = Number(asked.get("slice"));
  return changes;
}

function toAddress() {
  const address = new URLSearchParams(state);
  history.replaceState(null, "", `#${address}`);
}

function toggle(name, type, box, onchange) {
  for (const modality of modalities) {
    const label = document.createElement("label");
    label.append(element("input", "", { type, name, value: modality, onchange }),
      element("span", data.modalities[modality]));
    box.append(label);
  }
}

function start() {
  for (const input of document.querySelectorAll("input[data-group]")) {
    input.onchange = () => choosePart(input.dataset.group);
    choosePart(input.dataset.group);
  }
  for (const one of data.cases) {
    const note = data.slices[one.name] ? "" : " (numbers only)";
    byId("case").append(element("option", one.name + note, { value: one.name }));
  }
  const act = (changes) => { choose(changes); toAddress(); };
  byId("case").onchange = (event) => act({ case: event.target.value });
  byId("slice").oninput = (event) => act({ slice: Number(event.target.value) });
  toggle("sees", "checkbox", byId("sees"), (event) => {
    const sees = [...document.querySelectorAll("#sees input:checked")].map((i) => i.value);
    if (!sees.length) { event.target.checked = true; return; }
    const subset = sees.join("+");
    const one = caseNamed(state.case);
    // A table of some subsets only: go to the nearest one that has the sequence just chosen.
    const near = data.subsets.filter((s, i) => one.dice[i]
      && s.split("+").includes(event.target.value) === event.target.checked);
    act({ sees: one.dice[data.subsets.indexOf(subset)] ? subset : near[0] || state.sees });
  });
  toggle("picture", "radio", byId("picture"), (event) => act({ picture: event.target.value }));
  for (const [id, names] of [["worst-region", ["all regions", ...regions]],
    ["worst-subset", [`mean over ${data.subsets.length} subsets`, ...data.subsets.map(shown)]]]) {
    for (const name of names) byId(id).append(element("option", name));
    byId(id).onchange = writeWorst;
  }
  window.onhashchange = () => {
    const changes = fromAddress();
    if (changes.case) choose(changes);
  };
  window.onresize = drawSlices;
  choose(fromAddress());
  writeWorst();
}

start();
