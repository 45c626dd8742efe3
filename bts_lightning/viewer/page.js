// The page of `bts view`: what the server says, shown by NiiVue, switched by four modalities.
import { Niivue } from './niivue.js';

const LAYERS = ['labels', 'changes', 'entropy', 'disagreement'];
const [LOST, INVENTED, OUTLINE] = [201, 202, 203]; // beside the values of labels
const MARKS = [[LOST, 'lost', '#ff5a4f'], [INVENTED, 'invented', '#ffd23f'], [OUTLINE, 'outline', '#ffffff']];
const SEES = [8, 4, 2, 1]; // the bits of a subset's code: T1, T1c, T2, FLAIR
const FIRST = 352; // the byte of a NIfTI file of ours at which its voxels begin
const PATIENT = 100, REST = 600; // milliseconds: a 3-D view that takes longer waits until switches rest
const TITLES = { ml: 'Volume (ml)', dice: 'Dice (%)', hd95: 'HD95 (mm)' };

const by = (id) => document.getElementById(id);
const view = { // what a link reproduces
  case: 0, subset: 15, picture: 3, layer: 'labels', against: 'full', region: '', outline: false,
  shown: true, at: null,
};
let facts, info, panes = [], truth = null, turn = 0;
const times = {}; // milliseconds, for who measures; see docs/viewer.md

function h(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(given)) {
    if (key.startsWith('on')) made.addEventListener(key.slice(2), value);
    else if (key === 'class') made.className = value;
    else if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

async function ask(word, numbers = {}) {
  const query = new URLSearchParams(numbers).toString();
  const answer = await fetch(query ? `${word}?${query}` : word);
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer;
}

async function unpacked(answer) {
  const stream = answer.body.pipeThrough(new DecompressionStream('gzip'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const say = (text, bad = false) => Object.assign(by('said'), { textContent: text, className: bad ? 'bad' : '' });

function cropped(voxels) { // the box of what is not zero
  const [nx, ny] = info.shape, low = [...info.shape], high = [0, 0, 0];
  voxels.forEach((value, i) => value && [i % nx, ((i / nx) | 0) % ny, (i / (nx * ny)) | 0].forEach((v, k) => {
    low[k] = Math.min(low[k], v);
    high[k] = Math.max(high[k], v + 1);
  }));
  if (!high[0]) return { low: [0, 0, 0], size: [0, 0, 0], data: new Uint8Array(0) };
  const size = high.map((v, k) => v - low[k]), data = new Uint8Array(size[0] * size[1] * size[2]);
  for (let to = 0, z = low[2]; z < high[2]; z++) for (let y = low[1]; y < high[1]; y++, to += size[0]) {
    const from = low[0] + nx * (y + ny * z);
    data.set(voxels.subarray(from, from + size[0]), to);
  }
  return { low, size, data };
}

function grid(volume) { // where a voxel of the scan lies in NiiVue's drawing, whose axes are the patient's
  const own = [1, info.shape[0], info.shape[0] * info.shape[1]], size = volume.dimsRAS.slice(1, 4), step = [];
  let first = 0, stride = 1;
  volume.img2RASstep.forEach((way, k) => {
    step[own.indexOf(Math.abs(way))] = way > 0 ? stride : -stride;
    if (way < 0) first += (size[k] - 1) * stride;
    stride *= size[k];
  });
  return { first, step };
}

const finished = (gl) => gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4)); // waits

function around(...maps) { // the box that holds them all, first and one past the last voxel
  const full = maps.filter((map) => map.size[0]);
  const low = [0, 1, 2].map((k) => Math.min(...full.map((map) => map.low[k])));
  const high = [0, 1, 2].map((k) => Math.max(...full.map((map) => map.low[k] + map.size[k])));
  return full.length ? { low, high } : { low: [0, 0, 0], high: [0, 0, 0] };
}

function at(map, x, y, z) {
  const [i, j, k] = [x - map.low[0], y - map.low[1], z - map.low[2]], [a, b, c] = map.size;
  return i < 0 || j < 0 || k < 0 || i >= a || j >= b || k >= c ? 0 : map.data[i + a * (j + b * k)];
}

class Pane {
  constructor(run) {
    this.run = run;
    this.maps = new Map();
    this.state = { stage: 'waiting', rows: {}, weights: [], shapley: null };
    this.canvas = h('canvas', { 'aria-label': `${facts.runs[run]}: three planes and 3-D`, tabIndex: 0 });
    this.still = h('canvas', { hidden: true, class: 'still' }); // the 3-D view as it was, until it is drawn anew
    this.cost = 0; // milliseconds of the last whole drawing
    this.note = h('p', { hidden: true });
    this.work = h('div', { class: 'work' });
    this.numbers = h('table');
    this.bars = h('div', { class: 'bars' });
    this.save = h('a', { href: '#', hidden: true, class: 'save' }, 'Save this label map (NIfTI)');
    this.strip = h('div', { class: 'strip' });
    const title = h('h3', {}, facts.runs[run]);
    this.element = h('section', { class: facts.runs.length > 1 ? 'pane' : 'pane one' }, title,
      h('div', { class: 'picture' }, this.canvas, this.still, this.note), this.work, this.strip,
      h('div', { class: 'below' }, h('div', {}, this.numbers, this.save), this.bars));
    by('panes').append(this.element);
  }

  async start() {
    this.nv = new Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [0.35, 0.81, 0.75, 0.9], crosshairWidth: 0.8,
      crosshairWidthUnit: 'mm',
      isRadiologicalConvention: true, multiplanarShowRender: 1, multiplanarForceRender: true,
      show3Dcrosshair: true, dragAndDropEnabled: false, logLevel: 'error', loadingText: '',
      isOrientationTextVisible: true, crosshairGap: 2, keyDebounceTime: 1e9,
    });
    await this.nv.attachToCanvas(this.canvas);
    this.nv.setSliceType(this.nv.sliceTypeMultiplanar);
    this.nv.setMultiplanarLayout(2); // two rows
    this.nv.onLocationChange = (place) => moved(this, place);
  }

  async show(picture) {
    this.maps.clear();
    this.heat = this.hot = this.glows = this.grid = null; // nothing is painted until the picture is there
    this.state = { stage: 'waiting', rows: {}, weights: [], shapley: null };
    for (const volume of [...this.nv.volumes]) this.nv.removeVolume(volume);
    this.nv.setDrawColormap(tables().drawn);
    await this.look(picture);
    this.nv.createEmptyDrawing();
    this.grid = grid(this.nv.volumes[0]);
  }

  async look(picture) { // put another picture below whatever lies over it
    const volume = await this.volume('picture.nii', picture.slice(0), { colormap: 'gray' });
    if (this.nv.volumes.length > 1) this.nv.removeVolume(this.nv.volumes[0]);
    this.nv.setVolume(volume, 0);
    this.note.hidden = !!(view.subset & SEES[view.picture]);
    this.note.textContent = `The network did not see this ${facts.modalities[view.picture].shown} picture.`;
  }

  volume(name, buffer, options) {
    return this.nv.addVolumeFromUrl({ url: name, name, buffer, ...options });
  }

  async take(code) { // a label map that has become ready
    const file = await unpacked(await ask('labels', { case: view.case, run: this.run, subset: code }));
    this.maps.set(code, cropped(file.subarray(FIRST)));
  }

  async paint() { // labels and marks are NiiVue's drawing: to change it costs next to nothing
    const code = view.subset, map = this.maps.get(code), { nv } = this;
    this.busy();
    if (!this.grid) return;
    const began = performance.now(), share = view.shown ? by('opacity').value / 100 : 0;
    const isHeat = view.layer === 'entropy' || view.layer === 'disagreement';
    if (this.heat) this.heat.opacity = 0;
    const glows = isHeat && map && view.shown && (await this.warm(code));
    if (code !== view.subset) return; // another switch was faster
    nv.drawBitmap.fill(0);
    nv.drawOpacity = share;
    if (map && share && view.layer === 'labels') this.put(map);
    if (map && share && !isHeat && (view.outline || view.layer === 'changes')) this.compare(map);
    nv.refreshDrawing(false);
    if (glows) this.heat.opacity = share;
    if (glows || this.glows) nv.refreshLayers(this.heat, 1);
    this.glows = glows;
    this.draw();
    if (map) times.switch = performance.now() - began;
    this.tell();
    this.small();
  }

  draw() { // the planes at once, and the 3-D view with them where that is quick
    const { nv } = this;
    clearTimeout(this.later);
    if (this.cost < PATIENT) return this.whole();
    this.still.hidden = false;
    nv.draw3D = (tile) => nv.screenSlices.push({ // a view that can be turned
      leftTopWidthHeight: [...tile], axCorSag: 4, sliceFrac: 0, AxyzMxy: [], leftTopMM: [], fovMM: [[1, 1, 1], 0],
    });
    nv.drawScene();
    delete nv.draw3D;
    finished(nv.gl);
    return this.later = setTimeout(() => this.whole(), REST);
  }

  whole() {
    const { nv, canvas, still } = this, began = performance.now();
    nv.drawScene();
    finished(nv.gl);
    this.cost = performance.now() - began;
    still.hidden = true;
    const view3d = nv.screenSlices.find(({ axCorSag }) => axCorSag === 4);
    if (this.cost < PATIENT || !view3d) return;
    const [left, top, width, height] = view3d.leftTopWidthHeight;
    Object.assign(still, { width: canvas.width, height: canvas.height });
    still.getContext('2d').drawImage(canvas, left, top, width, height, left, top, width, height);
  }

  put(map) {
    const { first, step: [dx, dy, dz] } = this.grid, { drawBitmap: drawn } = this.nv, [nx, ny, nz] = map.size;
    for (let from = 0, z = 0; z < nz; z++) for (let y = 0; y < ny; y++) {
      let to = first + map.low[0] * dx + (map.low[1] + y) * dy + (map.low[2] + z) * dz;
      for (let x = 0; x < nx; x++, to += dx) drawn[to] = map.data[from++];
    }
  }

  compare(map) { // lost, invented and the outline of what it is compared with
    const { first, step: [dx, dy, dz] } = this.grid, { drawBitmap: drawn } = this.nv, inside = new Uint8Array(256);
    const other = view.against === 'truth' ? truth : this.maps.get(info.available);
    if (!other) return;
    for (const value of info.regions[view.region]) inside[value] = 1;
    const { low, high } = around(map, other);
    const there = (x, y, z) => inside[at(other, x, y, z)];
    for (let z = low[2]; z < high[2]; z++) for (let y = low[1]; y < high[1]; y++) for (let x = low[0]; x < high[0]; x++) {
      const was = there(x, y, z), is = inside[at(map, x, y, z)];
      let mark = view.layer === 'changes' && was !== is ? (was ? LOST : INVENTED) : 0;
      if (view.outline && was && !(there(x - 1, y, z) && there(x + 1, y, z) && there(x, y - 1, z)
        && there(x, y + 1, z) && there(x, y, z - 1) && there(x, y, z + 1))) mark = OUTLINE;
      if (mark) drawn[first + x * dx + y * dy + z * dz] = mark;
    }
  }

  async warm(code) { // fetch a heat map, unless it is there
    const word = view.layer, which = `${view.case} ${word} ${word === 'entropy' ? code : ''}`;
    if (this.hot === which) return true;
    const numbers = { case: view.case, run: this.run, ...(word === 'entropy' ? { subset: code } : {}) };
    try {
      const file = await unpacked(await ask(word, numbers));
      const look = { colormap: 'inferno', cal_min: 32, cal_max: 255, opacity: 0 };
      if (this.heat) this.heat.img.set(file.subarray(FIRST));
      else this.heat = await this.volume('heat.nii', file.buffer, look);
    } catch (error) {
      say(`${word}: ${error.message}`);
      return false;
    }
    this.hot = which;
    return true;
  }

  busy() {
    const { stage, progress, error, rows: ready } = this.state, count = Object.keys(ready).length;
    const waits = !this.maps.has(view.subset);
    const parts = [];
    if (stage === 'failed') parts.push(h('span', { class: 'bad' }, error));
    else if (stage !== 'done') {
      const missing = waits ? '; this one is not ready yet' : '';
      const text = `${count} of ${info.subsets.length} label maps${missing}`;
      parts.push(h('progress', { value: progress || 0, max: 1, 'aria-label': 'label maps' }), text);
    }
    this.work.replaceChildren(...parts);
    this.work.hidden = parts.length === 0;
    this.element.dataset.ready = waits ? '' : view.subset;
  }

  tell() { // volumes and scores, and how they differ from those with all modalities
    const row = this.state.rows[view.subset], full = this.state.rows[info.available];
    const columns = Object.keys(TITLES).filter((key) => row && row[key]);
    const head = h('tr', {}, h('th', {}, 'Region'), ...columns.map((key) => h('th', { scope: 'col' }, TITLES[key])));
    const body = Object.keys(info.regions).map((region) => h('tr', {},
      h('th', { scope: 'row', title: facts.regions[region].words }, region),
      ...columns.map((key) => cell(key, row[key][region], full && full[key][region]))));
    const said = row ? `; small: change against all ${count(info.available)}` : ' is not ready yet';
    const caption = h('caption', {}, `${row ? 'From ' : ''}${shown(view.subset)}${said}`);
    this.numbers.replaceChildren(caption, head, ...body);
    this.save.hidden = !row;
    this.save.href = `labels?${new URLSearchParams({ case: view.case, run: this.run, subset: view.subset })}`;
    this.save.download = `${info.name.replace(/[^\w.-]/g, '_')}_${facts.subsets[view.subset]}.nii.gz`;
    this.weigh();
  }

  weigh() { // weights of modalities in this subset, and what each is worth in points of Dice
    const { weights, shapley } = this.state, parts = [], name = facts.subsets[view.subset];
    const bars = (values, title, unit) => {
      const most = Math.max(1, ...values.map(Math.abs));
      parts.push(h('b', {}, title));
      values.forEach((value, m) => {
        const style = `width: ${(100 * Math.max(0, value)) / most}%; background: ${facts.regions[view.region].colour}`;
        const words = [facts.modalities[m].shown, `${value.toFixed(1)}${unit}`].map((text) => h('span', {}, text));
        parts.push(words[0], h('i', { style }), words[1]);
      });
    };
    const worth = shapley?.[view.region];
    if (worth) bars(worth, `${view.region}: Shapley value, points of Dice`, '');
    const mine = weights.filter((row) => row.subset === name && row.region === view.region);
    const finest = Math.min(...mine.map((row) => row.level));
    for (const row of mine.filter((one) => one.level === finest)) {
      bars(row.weights, `${view.region}: ${row.kind}, level ${row.level}, of ${shown(view.subset)}`, ' %');
    }
    this.bars.replaceChildren(...parts);
  }

  small() { // the axial slice of the crosshair in every subset
    const picture = this.nv.volumes[0], [c, r, s] = info.axes, [fc, fr] = info.flipped;
    if (!picture || !view.at) return;
    const [c0, c1] = info.box[c], [r0, r1] = info.box[r], width = c1 - c0, height = r1 - r0;
    const stride = [1, info.shape[0], info.shape[0] * info.shape[1]], colours = tables().rgb;
    const low = picture.cal_min, scale = 200 / Math.max(1, picture.cal_max - low);
    const order = [...info.subsets].sort((a, b) => count(b) - count(a) || b - a);
    if (this.strip.childElementCount !== order.length) {
      this.strip.replaceChildren(...order.map((code) => h('button', {
        type: 'button', title: shown(code), 'aria-label': `see ${shown(code)}`, onclick: () => choose(code),
      }, h('canvas'), dots(code))));
    }
    order.forEach((code, place) => {
      const button = this.strip.children[place], canvas = button.firstChild, map = this.maps.get(code);
      button.setAttribute('aria-pressed', String(code === view.subset));
      button.disabled = !map;
      canvas.width = width;
      canvas.height = height;
      const drawn = new ImageData(width, height), voxel = [0, 0, 0];
      voxel[s] = view.at[s];
      for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
        voxel[c] = fc ? c1 - 1 - x : c0 + x;
        voxel[r] = fr ? r1 - 1 - y : r0 + y;
        const grey = (picture.img[voxel[0] + stride[1] * voxel[1] + stride[2] * voxel[2]] - low) * scale;
        const colour = map && colours[at(map, ...voxel)], p = 4 * (x + width * y);
        drawn.data.set(colour || [grey, grey, grey], p);
        drawn.data[p + 3] = 255;
      }
      canvas.getContext('2d').putImageData(drawn, 0, 0);
    });
  }
}

function cell(key, value, full) {
  if (value === null || value === undefined) return h('td', {}, '–');
  const factor = key === 'dice' ? 100 : 1, made = h('td', {}, (factor * value).toFixed(1));
  if (view.subset !== info.available && full !== null && full !== undefined) {
    const change = factor * (value - full), size = Math.abs(change).toFixed(1);
    const sign = size === '0.0' ? '±' : change > 0 ? '+' : '−';
    const better = key === 'ml' || size === '0.0' ? null : (change > 0) === (key === 'dice');
    made.append(h('small', { class: better === null ? '' : better ? 'better' : 'worse' }, sign + size));
  }
  return made;
}

const count = (code) => SEES.filter((bit) => code & bit).length;
const dots = (code) => SEES.map((bit) => (code & bit ? '●' : '○')).join('');
const shown = (code) => facts.modalities.filter((_, m) => code & SEES[m]).map((m) => m.shown).join(' + ');
const rgb = (hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));

function tables() {
  const table = (entries) => {
    const all = [[0, 'nothing', '#000000'], ...entries], colours = all.map(([, , hex]) => rgb(hex));
    return {
      I: all.map(([value]) => value), labels: all.map(([, name]) => name),
      R: colours.map((c) => c[0]), G: colours.map((c) => c[1]), B: colours.map((c) => c[2]),
      A: all.map(([value]) => (value ? 255 : 0)),
    };
  };
  const labels = info.labels.map(({ value, name, colour }) => [value, name, colour]);
  return {
    drawn: table([...labels, ...MARKS]),
    rgb: Object.fromEntries(labels.map(([value, , hex]) => [value, rgb(hex)])),
  };
}

function legend() {
  const parts = [];
  const key = (colour, text) => [h('i', { style: `background: ${colour}` }), text];
  if (view.layer === 'labels') info.labels.forEach((l) => parts.push(...key(l.colour, l.name)));
  if (view.layer === 'changes') {
    const whom = view.against === 'truth' ? 'the expert’s label' : 'all modalities';
    parts.push(`${view.region} against ${whom}:`);
    MARKS.slice(0, 2).forEach(([, name, colour]) => parts.push(...key(colour, name)));
  }
  if (view.outline && ['labels', 'changes'].includes(view.layer)) parts.push(...key('#fff', `outline of ${view.region}`));
  const doubts = {
    entropy: 'Entropy of the chosen subset: clear below an eighth of a bit, bright at one bit, a coin.',
    disagreement: `Share of the ${info.subsets.length} subsets that do not say what most of them say.`,
  };
  parts.push(doubts[view.layer] || '');
  by('legend').replaceChildren(...parts);
}

function controls() {
  const radios = (place, name, options, chosen) => {
    for (const [value, text] of options) {
      by(place).append(h('label', {}, h('input', { type: 'radio', name, value, onchange: () => chosen(value) }), text));
    }
  };
  facts.modalities.forEach(({ shown: text }, m) => by('switches').append(h('label', {}, h('input', {
    type: 'checkbox', role: 'switch', value: m, 'aria-keyshortcuts': String(m + 1), onchange: () => toggle(m),
  }), text)));
  radios('pictures', 'picture', facts.modalities.map(({ shown: text }, m) => [m, text]), (m) => picture(Number(m)));
  radios('layers', 'layer', LAYERS.map((l) => [l, l === 'labels' ? 'segmentation' : l]), (layer) => change({ layer }));
  by('region').append(...Object.keys(facts.regions).map((r) => h('option', { value: r }, r)));
  by('region').onchange = (event) => change({ region: event.target.value });
  by('against').onchange = (event) => change({ against: event.target.value });
  by('outline').onchange = (event) => change({ outline: event.target.checked });
  by('opacity').oninput = () => change({});
  by('search').oninput = list;
  by('save-picture').onclick = savePicture;
  by('copy-link').onclick = copyLink;
  by('heads').hidden = !facts.cases.some((one) => 'all' in one.dice);
  by('tools').onsubmit = (event) => event.preventDefault();
}

function list() {
  const part = by('search').value.trim().toLowerCase();
  const number = (value) => h('span', {}, value === undefined ? '' : value.toFixed(1));
  by('cases').replaceChildren(...facts.cases.flatMap((one, place) => {
    if (!one.name.toLowerCase().includes(part)) return [];
    const button = h('button', { type: 'button', onclick: () => open(place) }, h('span', {}, one.name),
      number(one.dice.all), number(one.dice.without_t1c));
    return [h('li', place === view.case ? { 'aria-current': 'true' } : {}, button)];
  }));
}

function reflect() { // let every control say what is so
  const set = (id, checked, disabled) => document.querySelectorAll(`#${id} input`)
    .forEach((box, m) => Object.assign(box, { checked: checked(m), disabled: disabled(m) }));
  set('switches', (m) => !!(view.subset & SEES[m]), (m) => !(info.available & SEES[m]) || view.subset === SEES[m]);
  set('pictures', (m) => m === view.picture, (m) => !(info.available & SEES[m]));
  set('layers', (place) => LAYERS[place] === view.layer, () => false);
  by('region').value = view.region;
  by('against').value = view.against;
  by('against').options[1].disabled = !info.labelled;
  by('outline').checked = view.outline;
  for (const pane of panes) pane.note.hidden = !!(view.subset & SEES[view.picture]);
  legend();
  const place = view.at ? { at: view.at.join() } : {};
  const { subset, picture: below, layer } = view, outline = view.outline && { outline: 1 };
  const hash = new URLSearchParams({ case: info.name, subset, picture: below, layer, ...outline, ...place });
  history.replaceState(null, '', `#${hash}`);
}

async function change(what) {
  Object.assign(view, what);
  reflect();
  await Promise.all(panes.map((pane) => pane.paint()));
}

const choose = (code) => change({ subset: code });

function toggle(m) {
  const other = view.subset ^ SEES[m];
  // The last one stays: a network that sees nothing says nothing.
  return info.available & SEES[m] && other ? choose(other) : reflect();
}

async function picture(m) {
  if (!(info.available & SEES[m])) return;
  view.picture = m;
  const buffer = await (await ask('picture', { case: view.case, modality: m })).arrayBuffer();
  const now = view.at;
  for (const pane of panes) await pane.look(buffer);
  if (now) goTo(now);
  await change({});
}

function moved(pane, place) {
  const voxel = mapped(info.inverse, [...place.mm].slice(0, 3));
  view.at = voxel.map((v, k) => Math.min(info.shape[k] - 1, Math.max(0, Math.round(v))));
  by('where').textContent = `voxel ${view.at.join(', ')}`;
  for (const other of panes) {
    if (other === pane || !other.nv.volumes.length) continue;
    other.nv.scene.crosshairPos = pane.nv.scene.crosshairPos.slice();
    other.nv.scene.renderAzimuth = pane.nv.scene.renderAzimuth;
    other.nv.scene.renderElevation = pane.nv.scene.renderElevation;
    other.nv.drawScene();
  }
  cancelAnimationFrame(turn);
  turn = requestAnimationFrame(() => reflect(panes.forEach((one) => one.small())));
}

const mapped = (affine, [x, y, z]) => affine.slice(0, 3).map(([a, b, c, d]) => a * x + b * y + c * z + d);

function goTo(voxel) {
  for (const { nv } of panes) {
    nv.scene.crosshairPos = nv.mm2frac(mapped(info.affine, voxel));
    nv.drawScene();
  }
  panes[0].nv.createOnLocationChange();
}

const step = (x, y, z) => panes[0].nv.moveCrosshairInVox(x, y, z); // along the patient's axes

function middle(map) { // of the tumour, where its slice is largest; of the brain without one
  const [, , s] = info.axes, areas = [], voxels = [];
  if (!map || !map.size[0]) return info.box.map(([low, high]) => (low + high) >> 1);
  const [nx, ny] = map.size;
  map.data.forEach((value, i) => value && voxels.push([i % nx, ((i / nx) | 0) % ny, (i / (nx * ny)) | 0]));
  for (const v of voxels) areas[v[s]] = (areas[v[s]] || 0) + 1;
  const slice = areas.indexOf(areas.reduce((x, y) => Math.max(x, y))), own = voxels.filter((v) => v[s] === slice);
  return [0, 1, 2].map((k) => Math.round(own.reduce((sum, v) => sum + v[k], 0) / own.length) + map.low[k]);
}

async function open(place, wish = {}) {
  const began = performance.now();
  say('');
  try {
    info = await (await ask('open', { case: place })).json();
    const has = SEES.findLastIndex((bit) => info.available & bit);
    const keeps = info.available & SEES[view.picture] ? view.picture : has;
    Object.assign(view, { case: place, subset: info.available, picture: keeps, at: null, shown: true }, wish);
    if ((view.subset & info.available) !== view.subset || !view.subset) view.subset = info.available;
    if (!info.labelled) view.against = 'full';
    by('name').textContent = info.name;
    document.title = `${info.name} – bts view`;
    document.body.dataset.case = '';
    list();
    const buffer = await (await ask('picture', { case: place, modality: view.picture })).arrayBuffer();
    for (const pane of panes) await pane.show(buffer);
    times.picture = performance.now() - began;
    truth = info.labelled ? cropped((await unpacked(await ask('truth', { case: place }))).subarray(FIRST)) : null;
    goTo(view.at || middle(truth));
    await change({});
    await follow(place, began, !wish.at && !truth);
  } catch (error) {
    say(error.message, true);
  }
}

async function follow(place, began, centres) {
  for (;;) {
    const states = await (await ask('state', { case: place })).json();
    for (const pane of panes) {
      const before = pane.maps.size;
      const ready = Object.keys(states[pane.run].rows).map(Number).sort((a, b) => count(b) - count(a));
      pane.state = states[pane.run];
      for (const code of ready) {
        if (view.case !== place) return;
        if (pane.maps.has(code)) continue;
        await pane.take(code);
        if (pane.maps.size === 1) times.segmentation = performance.now() - began;
        if (centres && code === info.available) goTo(middle(pane.maps.get(code)));
        if (code === view.subset) await pane.paint();
      }
      pane.busy();
      if (pane.maps.size !== before || pane.state.stage === 'done') await pane.paint();
    }
    if (view.case !== place) return;
    if (states.every(({ stage }) => stage === 'done' || stage === 'failed')) break;
    await new Promise((done) => { setTimeout(done, 300); });
  }
  times.all = performance.now() - began;
  document.body.dataset.case = info.name;
}

async function savePicture() {
  const width = panes.reduce((sum, pane) => sum + pane.canvas.width, 0);
  const whole = h('canvas', { width, height: Math.max(...panes.map((pane) => pane.canvas.height)) });
  let left = 0;
  for (const pane of panes) { // a picture of WebGL is there until the browser takes its turn
    pane.nv.drawScene();
    whole.getContext('2d').drawImage(pane.canvas, left, 0);
    left += pane.canvas.width;
  }
  const blob = await new Promise((done) => { whole.toBlob(done, 'image/png'); });
  const link = h('a', { href: URL.createObjectURL(blob), download: `${info.name}_${facts.subsets[view.subset]}.png` });
  link.click();
  URL.revokeObjectURL(link.href);
}

async function copyLink() {
  reflect();
  const copied = await navigator.clipboard.writeText(location.href).then(() => true, () => false);
  say(`The link is in the ${copied ? 'clipboard' : 'address bar'}. It works while this viewer runs.`);
}

const KEYS = {
  ArrowLeft: () => step(1, 0, 0), ArrowRight: () => step(-1, 0, 0), ArrowUp: () => step(0, 1, 0),
  ArrowDown: () => step(0, -1, 0), PageUp: () => step(0, 0, 1), PageDown: () => step(0, 0, -1),
  ' ': () => change({ shown: !view.shown }), o: () => change({ outline: !view.outline }),
  c: () => change({ layer: after(LAYERS, view.layer) }),
  p: () => picture(after([0, 1, 2, 3].filter((m) => info.available & SEES[m]), view.picture)),
  j: () => open((view.case + 1) % facts.cases.length),
  k: () => open((view.case + facts.cases.length - 1) % facts.cases.length),
};
const after = (all, now) => all[(all.indexOf(now) + 1) % all.length];

function pressed(event) {
  const tag = event.target.tagName, kind = event.target.type;
  if (!info || event.ctrlKey || event.altKey || event.metaKey) return;
  // A field takes its own keys: letters where one writes, arrows and space where one chooses.
  if (kind === 'search' || tag === 'SELECT') return;
  if (/^(Arrow|Page)/.test(event.key) && (kind === 'range' || kind === 'radio')) return;
  if (event.key === ' ' && ['INPUT', 'BUTTON', 'A', 'SUMMARY'].includes(tag)) return;
  const use = /^[1-4]$/.test(event.key) ? () => toggle(event.key - 1) : KEYS[event.key] || KEYS[event.key.toLowerCase()];
  if (!use) return;
  event.preventDefault();
  event.stopPropagation();
  use();
}

async function begin() {
  facts = await (await ask('session')).json();
  const asked = new URLSearchParams(location.hash.slice(1)), { start } = facts;
  const named = facts.cases.findIndex((one) => one.name === asked.get('case'));
  const numbers = (text) => (/^\d+,\d+,\d+$/.test(text || '') ? text.split(',').map(Number) : null);
  const wish = named < 0
    ? { ...(start.subset && { subset: start.subset }), ...(start.at && { at: start.at }) }
    : { subset: Number(asked.get('subset')) || 0, at: numbers(asked.get('at')) };
  view.outline = asked.get('outline') === '1';
  if (LAYERS.includes(asked.get('layer'))) view.layer = asked.get('layer');
  if (SEES[asked.get('picture')] && asked.has('picture')) view.picture = Number(asked.get('picture'));
  view.region = Object.keys(facts.regions).includes('TC') ? 'TC' : Object.keys(facts.regions)[0];
  controls();
  panes = facts.runs.map((_, run) => new Pane(run));
  for (const pane of panes) await pane.start();
  addEventListener('keydown', pressed, true);
  window.viewer = { view, panes, times, choose }; // for tests, and for who looks behind the page
  await open(named < 0 ? start.case : named, wish);
}

begin().catch((error) => say(error.message, true));
