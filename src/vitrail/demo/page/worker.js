// Runs the network beside the page, so that the page stays responsive: image in, result out.

import { decode } from "./decode.js";
import { prepare, probe } from "./prepare.js";

/** Largest difference of a device's outputs from PyTorch's, as a share of the largest output. */
const TOLERANCE = 0.01;

let description, session, ort;

self.onmessage = async ({ data: { id, kind, ...given } }) => {
  try {
    const made = await { open, run }[kind](given, (progress) => self.postMessage({ id, progress }));
    self.postMessage({ id, result: made });
  } catch (error) {
    self.postMessage({ id, error: String(error?.message ?? error) });
  }
};

/** Load the network: on the GPU if the page wishes and there is one whose results are right, else on the processor. */
async function open({ base, network, wish }, tell) {
  description = network;
  const bytes = await fetched(new URL(description.file, base), description.bytes, tell);
  const notes = [];
  if (wish !== "wasm" && description.runtime.webgpu && (await hasGpu())) {
    try {
      await start("webgpu", base, bytes);
      const gap = await difference();
      if (!(gap <= TOLERANCE)) throw new Error(`its results differ by ${(100 * gap).toPrecision(2)} %`);
      return { provider: "webgpu", threads: 0, difference: gap, notes };
    } catch (error) {
      notes.push(`The GPU is not used: ${String(error?.message ?? error).split("\n")[0]}.`);
    }
  } else if (wish === "webgpu") {
    notes.push("There is no GPU that the browser lets pages use (WebGPU).");
  }
  await start("wasm", base, bytes);
  return { provider: "wasm", threads: ort.env.wasm.numThreads, difference: null, notes };
}

async function hasGpu() {
  try {
    return Boolean(await self.navigator.gpu?.requestAdapter());
  } catch {
    return false;
  }
}

async function start(provider, base, bytes) {
  await session?.release().catch(() => {});
  ort = await import(new URL(description.runtime[provider], base).href);
  ort.env.wasm.wasmPaths = new URL("ort/", base).href;
  // threads need memory that workers share, which browsers give pages with COOP and COEP headers only
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, Math.ceil(navigator.hardwareConcurrency / 2)) : 1;
  ort.env.logLevel = "error";
  session = await ort.InferenceSession.create(bytes, { executionProviders: [provider], logSeverityLevel: 3 });
}

/** A file's bytes, with messages on how much of it has come. */
async function fetched(url, total, tell) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${description.file} cannot be loaded: the server says ${response.status}.`);
  const data = new Uint8Array(total);
  let at = 0;
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (at + part.value.length > total) throw new Error(`${description.file} is not the file of this page.`);
    data.set(part.value, at);
    at += part.value.length;
    tell(at / total);
  }
  if (at !== total) throw new Error(`${description.file} is not the file of this page.`);
  return data;
}

/** Largest difference of the outputs for the made-up image from PyTorch's, as a share of each output's largest. */
async function difference() {
  const { width, height, outputs } = description.probe;
  const found = await forward(prepare(probe(width, height), description.input, description.prepare));
  let most = 0;
  for (const [name, { places, values, largest }] of Object.entries(outputs)) {
    places.forEach((place, i) => {
      const gap = Math.abs(found[name].data[place] - values[i]) / largest;
      most = gap <= most ? most : gap; // what is not a number stays
    });
  }
  return most;
}

async function forward(prepared) {
  const shape = [1, prepared.channels, prepared.height, prepared.width];
  const outputs = await session.run({ [description.input.name]: new ort.Tensor("float32", prepared.data, shape) });
  const read = {};
  for (const [name, tensor] of Object.entries(outputs)) {
    read[name] = { data: tensor.data, dims: tensor.dims };
  }
  return read;
}

/** The result for an image, and the milliseconds of its three parts. */
async function run({ pixels, width, height, raw }) {
  const image = { width, height, data: new Uint8ClampedArray(pixels) };
  const times = {};
  const timed = async (name, work) => {
    const before = performance.now();
    const made = await work();
    times[name] = performance.now() - before;
    return made;
  };
  const prepared = await timed("prepare", () => prepare(image, description.input, description.prepare));
  const outputs = await timed("network", () => forward(prepared));
  const result = await timed("decode", () => decode(outputs, description.decode, prepared, [height, width]));
  return { ...result, times, input: [prepared.height, prepared.width], ...(raw ? { outputs } : {}) };
}
