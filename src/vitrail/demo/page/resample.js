// Resampling of images as Pillow does it, to the last bit, and of floats as PyTorch does it.
//
// An image is {width, height, data}: RGBA bytes as a canvas gives them, of which red, green and blue are read.
// What comes out has three bytes a pixel.

/** Bits behind the point of Pillow's integer weights. */
const PRECISION = 32 - 8 - 2;

/** Pillow's filters: half width and weight at a distance from the centre. */
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, (x) => {
    x = Math.abs(x);
    if (x === 0) return 1;
    return x >= 1 ? 0 : sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x));
  }],
  bicubic: [2, (x) => {
    const a = -0.5;
    x = Math.abs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
  }],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

function sinc(x) {
  if (x === 0) return 1;
  x *= Math.PI;
  return Math.sin(x) / x;
}

/** First source pixel and integer weights of every pixel of a side that is resized from `before` to `after`. */
function weightsOf(before, after, filter) {
  const [half, weight] = FILTERS[filter];
  const scale = before / after;
  const widened = Math.max(scale, 1); // the filter is as wide as a new pixel: no aliasing
  const support = half * widened;
  const made = [];
  for (let i = 0; i < after; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(before, Math.trunc(centre + support + 0.5));
    const values = new Float64Array(last - first);
    let total = 0;
    for (let j = 0; j < values.length; j++) {
      values[j] = weight((j + first - centre + 0.5) * (1 / widened));
      total += values[j];
    }
    made.push({ first, values: Int32Array.from(values, (v) => fixed(total === 0 ? v : v / total)) });
  }
  return made;
}

function fixed(value) {
  return Math.trunc((value < 0 ? -0.5 : 0.5) + value * (1 << PRECISION));
}

/** One side resized; `step` and `line` say how far neighbours along that side, and lines across it, are apart. */
function resampleSide(source, target, weights, lines, from, to) {
  for (let line = 0; line < lines; line++) {
    const start = line * from.line;
    let place = line * to.line;
    for (const { first, values } of weights) {
      let red = 1 << (PRECISION - 1), green = red, blue = red;
      let at = start + first * from.step;
      for (let j = 0; j < values.length; j++, at += from.step) {
        red += source[at] * values[j];
        green += source[at + 1] * values[j];
        blue += source[at + 2] * values[j];
      }
      target[place] = red >> PRECISION; // the array clamps
      target[place + 1] = green >> PRECISION;
      target[place + 2] = blue >> PRECISION;
      place += to.step;
    }
  }
}

/** Part of an image: an RGBA image as one of three bytes a pixel. */
export function crop(image, left, top, width, height) {
  const depth = depthOf(image);
  const data = new Uint8ClampedArray(width * height * 3);
  for (let y = 0, to = 0; y < height; y++) {
    let from = ((top + y) * image.width + left) * depth;
    for (let x = 0; x < width; x++, from += depth, to += 3) {
      data[to] = image.data[from];
      data[to + 1] = image.data[from + 1];
      data[to + 2] = image.data[from + 2];
    }
  }
  return { width, height, data };
}

function depthOf(image) {
  return image.data.length / (image.width * image.height);
}

/**
 * An image at another size, as `PIL.Image.resize(size, filter)` gives it.
 *
 * @param tallFirst rows before columns where the height shrinks by more than twice the width's loss, as Pillow 13.
 */
export function resize(image, width, height, filter, tallFirst = true) {
  if (width === image.width && height === image.height) return crop(image, 0, 0, width, height);
  if (filter === "nearest") return resizeNearest(image, width, height);
  const less = image.height - height;
  if (tallFirst && less > 0 && less > 2 * (image.width - width)) {
    return resizeWidth(resizeHeight(image, height, filter), width, filter);
  }
  return resizeHeight(resizeWidth(image, width, filter), height, filter);
}

function resizeWidth(image, width, filter) {
  if (width === image.width) return image;
  const depth = depthOf(image);
  const data = new Uint8ClampedArray(width * image.height * 3);
  const from = { step: depth, line: image.width * depth }, to = { step: 3, line: width * 3 };
  resampleSide(image.data, data, weightsOf(image.width, width, filter), image.height, from, to);
  return { width, height: image.height, data };
}

function resizeHeight(image, height, filter) {
  if (height === image.height) return image;
  const depth = depthOf(image), { width } = image;
  const data = new Uint8ClampedArray(width * height * 3);
  const from = { step: width * depth, line: depth }, to = { step: width * 3, line: 3 };
  resampleSide(image.data, data, weightsOf(image.height, height, filter), width, from, to);
  return { width, height, data };
}

function resizeNearest(image, width, height) {
  const depth = depthOf(image);
  const columns = nearest(image.width, width), rows = nearest(image.height, height);
  const data = new Uint8ClampedArray(width * height * 3);
  let to = 0;
  for (const row of rows) {
    for (const column of columns) {
      const from = (row * image.width + column) * depth;
      for (let c = 0; c < 3; c++) data[to++] = image.data[from + c];
    }
  }
  return { width, height, data };
}

/** An image stretched to another size, each pixel as in PyTorch's "nearest". */
export function stretch(image, width, height) {
  const depth = depthOf(image);
  const source = (before, after, i) => Math.min(before - 1, Math.floor(Math.fround(i * Math.fround(before / after))));
  const data = new Uint8ClampedArray(width * height * 3);
  for (let y = 0, to = 0; y < height; y++) {
    const row = source(image.height, height, y) * image.width;
    for (let x = 0; x < width; x++) {
      const from = (row + source(image.width, width, x)) * depth;
      for (let c = 0; c < 3; c++) data[to++] = image.data[from + c];
    }
  }
  return { width, height, data };
}

/** Source pixels of a side; summed up step by step, as Pillow does. */
function nearest(before, after) {
  const scale = before / after;
  const made = new Int32Array(after);
  for (let i = 0, at = scale * 0.5; i < after; i++, at += scale) made[i] = Math.min(before - 1, Math.floor(at));
  return made;
}

/** Grey values (as PIL's mode "L") of an image of three bytes a pixel, one byte each. */
export function grey(image) {
  const data = new Uint8ClampedArray(image.width * image.height);
  for (let i = 0, at = 0; i < data.length; i++, at += 3) {
    data[i] = (19595 * image.data[at] + 38470 * image.data[at + 1] + 7471 * image.data[at + 2] + 0x8000) >> 16;
  }
  return { width: image.width, height: image.height, data };
}

/**
 * Floats (channels, height, width) resized bilinearly without a wider filter, corners not aligned, as
 * `torch.nn.functional.interpolate` does it, into a larger map whose right and lower border stays zero.
 */
export function interpolate(map, width, height, padded = { width, height }) {
  const columns = lerps(map.width, width), rows = lerps(map.height, height);
  const data = new Float32Array(map.channels * padded.width * padded.height);
  for (let c = 0; c < map.channels; c++) {
    const plane = map.data.subarray(c * map.width * map.height, (c + 1) * map.width * map.height);
    for (let y = 0; y < height; y++) {
      const above = rows.first[y] * map.width, below = rows.second[y] * map.width, down = rows.share[y];
      let to = (c * padded.height + y) * padded.width;
      for (let x = 0; x < width; x++, to++) {
        const left = columns.first[x], right = columns.second[x], along = columns.share[x];
        const upper = plane[above + left] * (1 - along) + plane[above + right] * along;
        const lower = plane[below + left] * (1 - along) + plane[below + right] * along;
        data[to] = upper * (1 - down) + lower * down;
      }
    }
  }
  return { channels: map.channels, width: padded.width, height: padded.height, data };
}

/** Both neighbours of every pixel of a side and the share of the second; in single precision, as PyTorch. */
export function lerps(before, after) {
  const scale = Math.fround(before / after);
  const first = new Int32Array(after), second = new Int32Array(after), share = new Float32Array(after);
  for (let i = 0; i < after; i++) {
    const at = Math.max(0, Math.fround(Math.fround(scale * (i + 0.5)) - 0.5));
    first[i] = Math.min(before - 1, Math.floor(at));
    second[i] = Math.min(before - 1, first[i] + 1);
    share[i] = at - first[i];
  }
  return { first, second, share };
}
