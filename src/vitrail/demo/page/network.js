// The network of a folder of `vitrail demo`, for the page here or for one of your own:
//
//   import { Network } from "./network.js";
//   const network = await Network.open(new URL("./", import.meta.url));
//   const result = await network.predict(fileOrImageOrCanvasOrVideo);

/** Pixels of an image that is looked at as it is; larger ones are made smaller first, as phones cannot hold them. */
const MOST_PIXELS = 2 ** 24;

export class Network {
  /**
   * @param base address of the folder.
   * @param wish "auto" = WebGPU where there is one, or "webgpu", "wasm".
   * @param tell called with the share of the file that has come.
   */
  static async open(base, { wish = "auto", tell = () => {} } = {}) {
    const response = await fetch(new URL("network.json", base));
    if (!response.ok) throw new Error(`network.json cannot be loaded: the server says ${response.status}.`);
    const network = new Network(base, await response.json());
    await network.start(wish, tell);
    return network;
  }

  constructor(base, description) {
    this.base = String(base);
    this.description = description;
    this.waiting = new Map();
    this.count = 0;
  }

  /** Load the file in a worker; `this.state` says what runs it: {provider, threads, notes}. */
  async start(wish = "auto", tell = () => {}) {
    this.close();
    this.worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => this.#answer(data);
    this.worker.onerror = (event) => {
      event.preventDefault();
      this.#fail(new Error(`The network's worker cannot be started${event.message ? `: ${event.message}` : ""}.`));
    };
    this.state = await this.#ask("open", { base: this.base, network: this.description, wish }, [], tell);
  }

  /**
   * The result for a file, image, canvas, video frame, or {width, height, data} of RGBA bytes.
   *
   * @param raw also give the network's outputs.
   */
  async predict(source, { raw = false } = {}) {
    const { width, height, data, reduced } = await pixelsOf(source);
    const found = await this.#ask("run", { pixels: data.buffer, width, height, raw }, [data.buffer]);
    return { ...found, width, height, reduced: Boolean(reduced) };
  }

  close() {
    this.worker?.terminate();
    this.#fail(new Error("The network was closed."));
  }

  #ask(kind, given, owned, tell) {
    const id = ++this.count;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject, tell });
      this.worker.postMessage({ id, kind, ...given }, owned);
    });
  }

  #answer({ id, result, error, progress }) {
    const call = this.waiting.get(id);
    if (!call) return;
    if (progress !== undefined) return call.tell?.(progress);
    this.waiting.delete(id);
    if (error === undefined) call.resolve(result);
    else call.reject(new Error(error));
  }

  #fail(error) {
    for (const { reject } of this.waiting.values()) reject(error);
    this.waiting.clear();
  }
}

/** RGBA bytes of an image: upright, in the values its file has, over white where it is transparent. */
export async function pixelsOf(source) {
  if (source.data instanceof Uint8ClampedArray) return { ...source, data: source.data.slice() };
  let drawn = source;
  if (source instanceof Blob) {
    try {
      drawn = await createImageBitmap(source, { colorSpaceConversion: "none", imageOrientation: "from-image" });
    } catch {
      throw new Error("This file is no image that the browser can read.");
    }
  }
  const [width, height] = sizeOf(drawn);
  const shrink = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height].map((side) => Math.max(1, Math.floor(side * shrink)));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(drawn, 0, 0, canvas.width, canvas.height);
  if (source instanceof Blob) drawn.close();
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  return { width: canvas.width, height: canvas.height, data, canvas, reduced: shrink < 1 };
}

/** [width, height] of an image, video or canvas. */
export function sizeOf(drawn) {
  return [drawn.videoWidth || drawn.naturalWidth || drawn.width, drawn.videoHeight || drawn.naturalHeight || drawn.height];
}
