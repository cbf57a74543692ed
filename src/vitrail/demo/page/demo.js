// The page: images in by file, drop, paste, example or camera; results drawn over them.

import { draw, element, listed } from "./draw.js";
import { Network, pixelsOf, sizeOf } from "./network.js";

const at = (id) => document.getElementById(id);
/** Sides of the canvas: small images are enlarged to the first, large ones made smaller to the second. */
const SMALLEST = 320, LARGEST = 1600;
/** Frames over which the camera's rate is averaged. */
const FRAMES = 20;

const shown = { score: 0.5, opacity: 0.55 };
let network, last = null, stream = null, facing = "environment", turn = 0;

start().catch(fail);

async function start() {
  network = new Network(new URL("./", import.meta.url), await described());
  const { title, decode } = network.description;
  document.title = title;
  at("title").textContent = title;
  at("about").textContent = about(network.description);
  const { licence, note } = network.description;
  at("licence").textContent = [licence && `Licence of the weights: ${licence}.`, note].filter(Boolean).join(" ");
  if (decode.kind === "retinanet") slider("score", (shown.score = decode.shown_score));
  if (decode.kind === "class_maps") slider("opacity", shown.opacity);
  listExamples(network.description.examples);
  listen();
  await load("auto");
  const first = at("examples").querySelector("button");
  if (first && !last && !stream) first.click();
}

async function described() {
  const response = await fetch(new URL("network.json", import.meta.url));
  if (!response.ok) throw new Error(`network.json cannot be loaded: the server says ${response.status}.`);
  return response.json();
}

function about({ network: name, head, task, classes, parameters, input, bytes }) {
  const size = input.width === null ? "" : `, ${input.width} x ${input.height} pixels`;
  return `${name}${head ? ` under ${head}` : ""}: ${task.replaceAll("_", " ")} of ${classes.length} class${
      classes.length === 1 ? "" : "es"}, ` +
    `${(parameters / 1e6).toFixed(1)} million parameters, ${(bytes / 1e6).toFixed(1)} MB${size}`;
}

/** Load the network on the device that is wished for. */
async function load(wish) {
  at("progress").hidden = false;
  say("Loading the network.");
  await network.start(wish, (share) => {
    at("progress").value = share;
    if (share === 1) say("Preparing the network.");
  });
  at("progress").hidden = true;
  const { provider, notes } = network.state;
  say(`Ready: the network runs ${device()}.`);
  at("notes").replaceChildren(...notes.map((text) => element("li", {}, text)));
  if (provider === "webgpu") at("device").hidden = false;
}

function say(text) {
  at("status").textContent = text;
  at("status").classList.remove("wrong");
}

function fail(error) {
  at("progress").hidden = true;
  say(error.message);
  at("status").classList.add("wrong");
}

// ---- images in ------------------------------------------------------------------------------------------------------

function listExamples(files) {
  at("examples").replaceChildren(...files.map((file, i) => {
    const example = element("img", { src: file, alt: `Example ${i + 1}`, loading: "lazy" });
    const button = element("button", { type: "button" }, example);
    button.addEventListener("click", async () => {
      const response = await fetch(new URL(file, import.meta.url)).catch(() => null);
      if (response?.ok) await show(await response.blob());
      else fail(new Error(`${file} cannot be loaded.`));
    });
    return element("li", {}, button);
  }));
}

function listen() {
  at("file").addEventListener("change", ({ target }) => {
    if (target.files[0]) show(target.files[0]);
    target.value = ""; // so that the same file can be chosen again
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      at("frame").classList.toggle("over", kind === "dragover");
      if (kind === "drop") given(event.dataTransfer);
    });
  }
  document.addEventListener("paste", (event) => given(event.clipboardData));
  at("camera").addEventListener("click", () => (stream ? stop() : film()));
  at("turn").addEventListener("click", () => {
    facing = facing === "user" ? "environment" : "user";
    stop();
    film();
  });
  at("wish").addEventListener("change", async ({ target }) => {
    try {
      await load(target.value);
      if (last) await show(last);
    } catch (error) {
      fail(error);
    }
  });
}

/** What was dropped or pasted. */
function given(transfer) {
  const file = [...(transfer?.files ?? [])].find(({ type }) => type.startsWith("image/"));
  if (file) show(file);
  else if (transfer?.files?.length) fail(new Error("This file is no image."));
}

/** One image: its result, drawn and listed. */
async function show(file) {
  stop();
  const mine = ++turn; // of results that come late only the last is shown
  last = file;
  try {
    say("Running the network.");
    const { canvas, data, width, height, reduced } = await pixelsOf(file);
    const result = await network.predict({ data, width, height });
    if (mine !== turn) return;
    paint(canvas, result);
    tell(result, 1000 / total(result.times), "image");
    say(reduced ? "The image is very large: it was made smaller first." : `Done ${device()}.`);
  } catch (error) {
    if (mine === turn) fail(error);
  }
}

const total = (times) => Object.values(times).reduce((a, b) => a + b, 0);

function device() {
  const { provider, threads } = network.state;
  if (provider === "webgpu") return "on the GPU (WebGPU)";
  return `on the processor (WebAssembly, ${threads === 1 ? "one thread" : `${threads} threads`})`;
}

// ---- camera ---------------------------------------------------------------------------------------------------------

async function film() {
  const mine = ++turn;
  at("camera").disabled = true;
  try {
    if (!navigator.mediaDevices) throw new Error("The browser gives cameras to pages from https or localhost only.");
    const asked = { facingMode: facing, width: { ideal: 640 }, height: { ideal: 480 } };
    stream = await navigator.mediaDevices.getUserMedia({ video: asked, audio: false });
    at("video").srcObject = stream;
    await at("video").play();
  } catch (error) {
    stop();
    const refused = error.name === "NotAllowedError" ? "The camera was not allowed." : "There is no camera to use.";
    return fail(error instanceof DOMException ? new Error(refused) : error);
  } finally {
    at("camera").disabled = false;
  }
  at("camera").textContent = "Stop the camera";
  const cameras = await navigator.mediaDevices.enumerateDevices();
  at("turn").hidden = cameras.filter(({ kind }) => kind === "videoinput").length < 2;
  last = null;
  say("The camera is on.");
  await follow(mine);
}

/** Frame after frame, as fast as the network is. */
async function follow(mine) {
  const ends = [performance.now()];
  while (stream && mine === turn) {
    try {
      const { canvas, data, width, height } = await pixelsOf(at("video"));
      const result = await network.predict({ data, width, height });
      if (!stream || mine !== turn) return;
      paint(canvas, result);
      ends.push(performance.now());
      if (ends.length > FRAMES + 1) ends.shift();
      tell(result, (1000 * (ends.length - 1)) / (ends.at(-1) - ends[0]), "frame");
    } catch (error) {
      stop();
      return fail(error);
    }
    await new Promise(requestAnimationFrame);
  }
}

function stop() {
  turn++;
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  at("video").srcObject = null;
  at("camera").textContent = "Use the camera";
  at("turn").hidden = true;
}

// ---- results out ----------------------------------------------------------------------------------------------------

let current = null;

function paint(image, result) {
  current = { image, result };
  const view = at("view");
  const [width, height] = sizeOf(image);
  const long = Math.max(width, height);
  const scale = long < SMALLEST ? Math.ceil(SMALLEST / long) : Math.min(1, LARGEST / long);
  const size = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
  if (view.width !== size[0] || view.height !== size[1]) [view.width, view.height] = size;
  view.getContext("2d").imageSmoothingEnabled = scale <= 1;
  view.hidden = false;
  at("hint").hidden = true;
  repaint();
}

function repaint() {
  if (!current) return;
  const { image, result } = current;
  draw(at("view"), image, result, network.description, shown);
  const rows = listed(result, network.description, shown);
  at("found").replaceChildren(...rows);
  const told = rows.slice(0, 3).map((row) => row.textContent).join(", ");
  at("view").setAttribute("aria-label", `The image; found: ${told}`);
}

function tell({ times, input }, rate, kind) {
  const [prepare, run, decode] = ["prepare", "network", "decode"].map((name) => times[name].toFixed(1));
  at("times").textContent = `${rate.toFixed(1)} ${kind}s per second: input of ${input[1]} x ${input[0]} pixels made in ` +
    `${prepare} ms, network ${run} ms, outputs read in ${decode} ms`;
}

function slider(name, value) {
  const label = at(name), input = label.querySelector("input"), output = label.querySelector("output");
  const set = () => {
    shown[name] = Number(input.value);
    output.textContent = shown[name].toFixed(2);
    repaint();
  };
  label.hidden = false;
  input.value = value;
  input.addEventListener("input", set);
  set();
}
