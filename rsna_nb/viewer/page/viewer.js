// Shows all images of a woman, and the next woman's on request. Python (viewer/page.py) puts everything into the page:
// #data describes the women and their pictures, and a script element of its own holds the packed pixels of each.
//
// A picture has levels, each half as large as the one before, of stored values. Changing the window turns the level
// that the screen needs into grey levels by a table of 65,536 entries; moving and zooming only draw that canvas again.
// Everything of the data becomes text by textContent, never HTML: a patient id may hold anything.
"use strict";

const MOST_WHILE_DRAGGING = 1.5e6; // pixels of a picture that are windowed for each frame
const MOST_ZOOM = 40;
const MAP_COLOUR = [255, 90, 0];
const BOX_COLOUR = "#56b4e9";
const OPAQUE = { alpha: false }; // of canvases: the browser blends them with nothing behind them, which is faster
const CLOSEST = 3; // screen pixels of a stored one, from which on single ones are shown

const data = JSON.parse(document.getElementById("data").textContent);
const womanOf = new Map(data.women.map((woman) => [woman.id, woman]));
const byId = (id) => document.getElementById(id);
const decoded = new Map(); // number of a picture -> promise of its levels and map
const state = { list: Object.keys(data.lists)[0], position: 0, overlay: true, boxes: true, fade: 0.6 };
let tiles = [];
let view = firstView();
let frame = 0;

// zoom and the place that the corner at the chest wall and the middle row moved to, in shares of the tile;
// the window's change in multiples of the picture's first width
function firstView() {
  return { zoom: 1, across: 0, down: 0, brighter: 0, wider: 1, dragging: false };
}

// ---------------------------------------------------------------- pixels

async function inflated(text) {
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// The reverse of `packed` in viewer/pictures.py.
async function unpacked(id, rows, columns) {
  const planes = await inflated(byId(id).textContent);
  const size = rows * columns;
  const values = new Uint16Array(size);
  for (let row = 0, i = 0; row < rows; row++) {
    for (let column = 0, value = 0; column < columns; column++, i++) {
      const folded = (planes[i] << 8) | planes[size + i];
      value = (value + ((folded >> 1) ^ -(folded & 1))) & 0xffff;
      values[i] = value;
    }
  }
  return { rows, columns, values };
}

function halved(level) {
  const rows = Math.floor(level.rows / 2), columns = Math.floor(level.columns / 2);
  const values = new Uint16Array(rows * columns);
  for (let row = 0, i = 0; row < rows; row++) {
    for (let column = 0, at = 2 * row * level.columns; column < columns; column++, i++, at += 2) {
      const below = at + level.columns;
      values[i] = (level.values[at] + level.values[at + 1] + level.values[below] + level.values[below + 1] + 2) >> 2;
    }
  }
  return { rows, columns, values };
}

async function decode(number) {
  const picture = data.pictures[number];
  const levels = [await unpacked(`pixels-${number}`, picture.rows, picture.columns)];
  while (Math.min(levels.at(-1).rows, levels.at(-1).columns) > 200) levels.push(halved(levels.at(-1)));
  const map = picture.mapShape ? mapCanvas(await unpacked(`map-${number}`, ...picture.mapShape)) : null;
  return { levels, map };
}

function decodedOf(number) {
  if (!decoded.has(number)) decoded.set(number, decode(number));
  return decoded.get(number);
}

function newCanvas(columns, rows) {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  return canvas;
}

function mapCanvas(map) {
  const canvas = newCanvas(map.columns, map.rows);
  const image = new ImageData(map.columns, map.rows);
  map.values.forEach((value, i) => image.data.set([...MAP_COLOUR, value], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// ---------------------------------------------------------------- window

// The stored values that are black and white now.
function windowOf(picture) {
  const width = picture.high - picture.low;
  const centre = (picture.low + picture.high) / 2 - view.brighter * width * (picture.falling ? -1 : 1);
  return { low: centre - (width * view.wider) / 2, high: centre + (width * view.wider) / 2 };
}

function curveAt(curve, share) {
  if (!curve) return share;
  const at = share * (curve.length - 1), before = Math.min(Math.floor(at), curve.length - 2);
  return curve[before] + (at - before) * (curve[before + 1] - curve[before]);
}

// Stored value -> opaque grey pixel.
function greyTable(picture) {
  const { low, high } = windowOf(picture);
  const table = new Uint32Array(65536);
  for (let value = 0; value < table.length; value++) {
    const share = curveAt(picture.curve, Math.min(1, Math.max(0, (value - low) / (high - low))));
    const grey = Math.round(255 * (picture.falling ? 1 - share : share));
    table[value] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
  }
  if (picture.padding) table.fill(0xff000000, Math.max(0, picture.padding[0]), Math.max(0, picture.padding[1] + 1));
  return table;
}

// The canvas of a level, windowed again if the window has changed since.
function greyCanvas(tile, number) {
  const level = tile.levels[number];
  const key = `${view.brighter} ${view.wider}`;
  if (level.key === key) return level.canvas;
  level.canvas ||= newCanvas(level.columns, level.rows);
  level.image ||= new ImageData(level.columns, level.rows);
  const pixels = new Uint32Array(level.image.data.buffer), table = tableOf(tile, key);
  for (let i = 0; i < pixels.length; i++) pixels[i] = table[level.values[i]];
  level.canvas.getContext("2d", OPAQUE).putImageData(level.image, 0, 0);
  level.key = key;
  return level.canvas;
}

function tableOf(tile, key) {
  if (tile.tableKey !== key) {
    tile.table = greyTable(tile.picture);
    tile.tableKey = key;
  }
  return tile.table;
}

// ---------------------------------------------------------------- drawing

// Screen pixels of one of the file at zoom 1: all pictures of an examination have one scale, at which the largest fits.
function scaleOf(exam) {
  const shown = tiles.filter((tile) => tile.exam === exam && !tile.picture.error);
  return Math.min(...shown.map(({ picture, canvas }) =>
    Math.min(canvas.width / picture.fileColumns, canvas.height / (picture.fileRows * picture.aspect))));
}

// Where the picture lies in its tile, in screen pixels: its chest wall is at the inner edge before it is moved.
function place(tile) {
  const { picture, canvas } = tile;
  const width = picture.fileColumns, height = picture.fileRows * picture.aspect;
  const scale = view.zoom * scaleOf(tile.exam);
  const fromWall = view.across * canvas.width;
  const x = picture.laterality === "R" ? canvas.width - fromWall - width * scale : fromWall;
  const y = (canvas.height - height * scale) / 2 + view.down * canvas.height;
  return { x, y, w: width * scale, h: height * scale };
}

// The coarsest level with a pixel for each of the screen's; a coarser one while the window is dragged.
function levelFor(tile, at) {
  const { levels } = tile, last = levels.length - 1;
  let number = 0;
  while (number < last && levels[number + 1].columns >= at.w) number++;
  while (number < last && view.dragging && levels[number].values.length > MOST_WHILE_DRAGGING) number++;
  return number;
}

function draw(tile) {
  const { canvas, picture } = tile, context = canvas.getContext("2d", OPAQUE);
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (!tile.levels) return;
  const at = place(tile), number = levelFor(tile, at), level = tile.levels[number];
  context.imageSmoothingEnabled = at.w / level.columns < CLOSEST;
  context.drawImage(greyCanvas(tile, number), at.x, at.y, at.w, at.h);
  context.imageSmoothingEnabled = true;
  context.globalAlpha = state.fade;
  if (tile.map && state.overlay) context.drawImage(tile.map, at.x, at.y, at.w, at.h);
  context.globalAlpha = 1;
  if (state.boxes) drawBoxes(context, picture.boxes, at);
  describe(tile, at);
}

function drawBoxes(context, boxes, at) {
  context.strokeStyle = BOX_COLOUR;
  context.lineWidth = 2 * devicePixelRatio;
  for (const [left, top, right, bottom] of boxes) {
    context.strokeRect(at.x + left * at.w, at.y + top * at.h, (right - left) * at.w, (bottom - top) * at.h);
  }
}

function describe(tile, at) {
  const { picture } = tile, { low, high } = windowOf(picture);
  const [black, white, centre] = [low, high, (low + high) / 2].map((value) => Math.round(value + picture.smallest));
  const percent = Math.round((100 * at.w) / picture.fileColumns);
  // A curve has no width that could be compared with a header's: its ends are told instead.
  // A width counts the values of both ends, as DICOM's does (PS3.3, C.11.2.1.2.1).
  const window = picture.curve ? `values ${black} to ${white}` : `center ${centre}, width ${white - black + 1}`;
  tile.state.textContent = `${window}; ${percent} %`;
}

function drawAll() {
  frame = 0;
  tiles.forEach(draw);
}

// All changes within a frame of the screen are drawn once.
function schedule() {
  frame ||= requestAnimationFrame(drawAll);
}

function resize() {
  for (const { canvas } of tiles) {
    const width = Math.round(canvas.clientWidth * devicePixelRatio);
    const height = Math.round(canvas.clientHeight * devicePixelRatio);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  }
  schedule();
}

// ---------------------------------------------------------------- women

function listed() {
  return data.lists[state.list];
}

async function showWoman() {
  const ids = listed(), woman = womanOf.get(ids[state.position]), hanging = byId("hanging");
  view = firstView();
  hanging.setAttribute("aria-busy", "true");
  const name = woman ? `Woman ${woman.id} (${state.position + 1} of ${ids.length})` : "no women in this list";
  byId("woman").textContent = name;
  byId("previous").disabled = state.position <= 0;
  byId("next").disabled = state.position >= ids.length - 1;
  tiles = hang(woman);
  showFacts(tiles[0]);
  resize();
  const shown = tiles;
  for (const tile of shown) { // one after the other, so that the first is there soon
    await load(tile);
    if (tiles !== shown) return; // another woman was chosen meanwhile
  }
  hanging.setAttribute("aria-busy", "false");
  keepNeighbours();
}

async function load(tile) {
  if (tile.picture.error) return;
  Object.assign(tile, await decodedOf(tile.number));
  for (const level of tile.levels) level.key = "";
  tile.tableKey = "";
  draw(tile);
  performance.mark("picture");
}

function numbersOf(woman) {
  return woman ? woman.exams.flatMap((exam) => exam.rows.flat()).filter((number) => number !== null) : [];
}

// Decodes the women before and after this one, and forgets the others': 20 women take 3 GB.
function keepNeighbours() {
  const near = [0, 1, -1].flatMap((step) => numbersOf(womanOf.get(listed()[state.position + step])));
  for (const number of decoded.keys()) if (!near.includes(number)) decoded.delete(number);
  const wanted = near.filter((number) => !data.pictures[number].error);
  wanted.reduce((before, number) => before.then(() => decodedOf(number)), Promise.resolve());
}

// Tiles in rows of right and left; the examinations of a woman stand side by side.
function hang(woman) {
  const hanging = byId("hanging"), exams = woman ? woman.exams : [], made = [];
  const lines = Math.max(0, ...exams.map((exam) => exam.rows.length));
  hanging.replaceChildren();
  hanging.style.gridTemplate = `repeat(${lines}, minmax(0, 1fr)) / repeat(${2 * exams.length}, minmax(0, 1fr))`;
  for (let line = 0; line < lines; line++) {
    for (const exam of exams) {
      const row = exam.rows[line] || [null, null];
      row.forEach((number, side) => made.push(newTile(hanging, number, ["right", "left"][side], woman, exam)));
    }
  }
  return made.filter((tile) => tile);
}

function newTile(hanging, number, side, woman, exam) {
  const box = added(hanging, "div", `tile ${side}`);
  if (number === null) return null;
  const picture = data.pictures[number], canvas = added(box, "canvas");
  const title = [exam.name, `${picture.laterality} ${picture.view}`, truthOf(picture), scoreOf(picture)];
  const text = title.filter((part) => part).join(" · ");
  added(box, "p", "title", text);
  box.classList.toggle("cancer", picture.table.cancer === "1");
  if (picture.error) added(box, "p", "error", `cannot be shown: ${picture.error}`);
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Mammogram ${text}`);
  const tile = { number, picture, canvas, woman, exam, state: added(box, "p", "state"), levels: null, map: null };
  listen(tile);
  return tile;
}

function truthOf(picture) {
  return { 0: "no cancer", 1: "cancer" }[picture.table.cancer] || "";
}

function scoreOf(picture) {
  return "score" in picture.table ? `score ${Number(picture.table.score).toFixed(3)}` : "";
}

function added(parent, name, className = "", text = "") {
  const element = document.createElement(name);
  element.className = className;
  element.textContent = text;
  return parent.appendChild(element);
}

function showFacts(tile) {
  const aside = byId("facts");
  aside.replaceChildren();
  if (!tile) return;
  const { picture, woman } = tile;
  addFacts(aside, `Woman ${woman.id}`, woman.facts);
  addFacts(aside, `${picture.laterality} ${picture.view}`, picture.table);
  if (!picture.error) addFacts(aside, "Picture", pictureFacts(picture));
  if (picture.notes && picture.notes.length) {
    added(aside, "h2", "", "Notes");
    const list = added(aside, "ul");
    picture.notes.forEach((note) => added(list, "li", "", note));
  }
  addFacts(aside, "Header", picture.facts);
}

function pictureFacts(picture) {
  const facts = {
    "shown here": `${picture.columns} x ${picture.rows}`,
    "in the file": `${picture.fileColumns} x ${picture.fileRows}`,
    bits: picture.bits,
    window: picture.window,
  };
  if (picture.mirrored) facts.mirrored = "yes, to be hung";
  return facts;
}

function addFacts(parent, title, facts) {
  if (!Object.keys(facts).length) return;
  added(parent, "h2", "", title);
  const list = added(parent, "dl");
  for (const [name, value] of Object.entries(facts)) {
    added(list, "dt", "", name);
    added(list, "dd", "", String(value));
  }
}

// ---------------------------------------------------------------- mouse and keys

function listen(tile) {
  const { canvas } = tile;
  canvas.addEventListener("pointerenter", () => tile.woman && !view.dragging && showFacts(tile));
  canvas.addEventListener("focus", () => showFacts(tile));
  canvas.addEventListener("pointerdown", (event) => drag(tile, event));
  canvas.addEventListener("wheel", (event) => zoomAt(tile, event), { passive: false });
}

function drag(tile, start) {
  if (start.button > 1) return;
  start.preventDefault();
  const { canvas } = tile, moves = start.button === 1 || start.shiftKey;
  canvas.focus();
  canvas.setPointerCapture(start.pointerId);
  let { clientX, clientY } = start;
  view.dragging = !moves;
  canvas.onpointermove = (event) => {
    const right = (event.clientX - clientX) / canvas.clientWidth;
    const down = (event.clientY - clientY) / canvas.clientHeight;
    ({ clientX, clientY } = event);
    if (moves) move(tile, right, down);
    else changeWindow(right, down);
  };
  canvas.onpointerup = canvas.onpointercancel = () => {
    canvas.onpointermove = canvas.onpointerup = canvas.onpointercancel = null;
    view.dragging = false;
    schedule(); // now at full resolution
  };
}

function changeWindow(right, down) {
  view.wider = Math.min(10, Math.max(0.01, view.wider * Math.exp(2 * right)));
  view.brighter -= down * view.wider;
  schedule();
}

// All pictures move away from the chest wall together, so right and left breasts move like mirror images.
function move(tile, right, down) {
  view.across += tile.picture.laterality === "R" ? -right : right;
  view.down += down;
  schedule();
}

// What is under the mouse stays there.
function zoomAt(tile, event) {
  if (window !== window.top && !document.hasFocus()) return; // else a notebook could not be scrolled past this frame
  event.preventDefault();
  const before = view.zoom, box = tile.canvas.getBoundingClientRect();
  view.zoom = Math.min(MOST_ZOOM, Math.max(1, before * Math.exp(-event.deltaY / 400)));
  const factor = view.zoom / before;
  const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height - 0.5;
  const across = tile.picture.laterality === "R" ? 1 - x : x;
  view.across = view.zoom === 1 ? 0 : across - (across - view.across) * factor;
  view.down = view.zoom === 1 ? 0 : y - (y - view.down) * factor;
  schedule();
}

function step(by) {
  const position = state.position + by;
  if (position < 0 || position >= listed().length) return;
  state.position = position;
  showWoman();
}

function toggle(name) {
  state[name] = !state[name];
  byId(name).setAttribute("aria-pressed", String(state[name]));
  schedule();
}

function setFade(value) {
  state.fade = Math.min(1, Math.max(0, Math.round(10 * value) / 10));
  byId("fade").value = state.fade;
  schedule();
}

function reset() {
  view = firstView();
  schedule();
}

const KEYS = {
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  o: () => toggle("overlay"),
  b: () => toggle("boxes"),
  "+": () => setFade(state.fade + 0.1),
  "=": () => setFade(state.fade + 0.1), // plus without shift on many keyboards
  "-": () => setFade(state.fade - 0.1),
  0: reset,
};

function onKey(event) {
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  const isControl = ["SELECT", "INPUT"].includes(event.target.tagName) && event.key.startsWith("Arrow");
  if (!action || isControl || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  action();
}

function begin() {
  for (const [name, ids] of Object.entries(data.lists)) {
    added(byId("list"), "option", "", `${name} (${ids.length})`).value = name;
  }
  byId("list").addEventListener("change", (event) => {
    Object.assign(state, { list: event.target.value, position: 0 });
    showWoman();
  });
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("overlay").addEventListener("click", () => toggle("overlay"));
  byId("boxes").addEventListener("click", () => toggle("boxes"));
  byId("reset").addEventListener("click", reset);
  byId("fade").addEventListener("input", (event) => setFade(Number(event.target.value)));
  const hasMaps = data.pictures.some((picture) => picture.mapShape);
  byId("overlay").disabled = byId("fade").disabled = !hasMaps;
  byId("boxes").disabled = !data.pictures.some((picture) => picture.boxes && picture.boxes.length);
  document.addEventListener("keydown", onKey);
  new ResizeObserver(resize).observe(byId("hanging"));
  showWoman();
}

begin();
