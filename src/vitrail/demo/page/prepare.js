// From an image to the network's input: the same sizes, crops and numbers as the library's own transforms.

import { crop, grey, interpolate, resize, stretch } from "./resample.js";

/**
 * The input of the network for an image.
 *
 * @param image {width, height, data} RGBA bytes.
 * @param input of network.json: {height, width (null = any), channels, mean, std}.
 * @param how of network.json: {kind: "crop" | "fit" | "detector", ...}.
 * @returns {channels, height, width, data: Float32Array, content: [height, width] without padding}
 */
export function prepare(image, input, how) {
  return { crop: cropped, fit: fitted, detector: forDetector }[how.kind](image, input, how);
}

/** Classification: the short side resized, the centre cropped. */
function cropped(image, input, how) {
  const whole = withoutEnds(image, how.slenderness);
  const [height, width] = resizedToCover(whole, how.resize);
  const small = resize(whole, width, height, how.filter, how.tall_first);
  const top = halfEven((height - input.height) / 2), left = halfEven((width - input.width) / 2);
  return tensor(crop(small, left, top, input.width, input.height), input);
}

/** The middle of a very slender image. */
function withoutEnds(image, slenderness) {
  const { width, height } = image;
  const most = Math.max(16, halfEven(slenderness * Math.min(width, height)));
  if (Math.max(width, height) <= most) return image;
  const w = Math.min(width, most), h = Math.min(height, most);
  return crop(image, Math.floor((width - w) / 2), Math.floor((height - h) / 2), w, h);
}

/** [height, width] of an image that covers `target` and keeps its shape. */
function resizedToCover({ width, height }, target) {
  if (target[0] === target[1]) {
    const side = target[0], short = Math.min(width, height);
    const long = Math.trunc((side * Math.max(width, height)) / short);
    return width <= height ? [long, side] : [side, long];
  }
  const ratio = Math.min(height / target[0], width / target[1]);
  return [halfEven(height / ratio), halfEven(width / ratio)];
}

/** Semantic segmentation: the whole image, its short side of a certain length unless the long one becomes too long. */
function fitted(image, input, how) {
  const { width, height } = image;
  const scale = Math.min(how.short_side / Math.min(width, height), how.max_side / Math.max(width, height));
  const [h, w] = [height, width].map((side) => {
    const scaled = Math.max(1, Math.trunc(side * scale + 0.5));
    return Math.ceil(scaled / how.multiple) * how.multiple;
  });
  return padded(tensor(resize(image, w, h, how.filter, how.tall_first), input), how.least, how.least);
}

/** Detection: normalised first, resized without a wider filter, padded with zeros, as torchvision does. */
function forDetector(image, input, how) {
  const [height, width] = keepOnePixel([image.height, image.width], how.max_size);
  const scale = Math.min(how.min_size / Math.min(width, height), how.max_size / Math.max(width, height));
  const [h, w] = [height, width].map((side) => Math.floor(side * scale));
  const full = [h, w].map((side) => Math.ceil(side / how.divisible) * how.divisible);
  const whole = tensor(stretch(image, width, height), input);
  const made = interpolate(whole, w, h, { width: full[1], height: full[0] });
  return { ...made, content: [h, w] };
}

/** Sides of which the short one keeps a pixel when the long one becomes `most`: stretched, if need be. */
function keepOnePixel(sides, most) {
  const long = Math.max(...sides);
  return long <= most ? sides : sides.map((side) => Math.max(side, Math.ceil(long / most) + 1));
}

/** Normalised floats (channels, height, width) of an image of three bytes a pixel. */
function tensor(image, input) {
  const { width, height } = image;
  const { channels } = input;
  const source = channels === 1 ? grey(image) : image;
  const data = new Float32Array(channels * width * height);
  for (let c = 0; c < channels; c++) {
    const table = new Float32Array(256);
    for (let v = 0; v < 256; v++) {
      const centred = Math.fround(Math.fround(v / 255) - Math.fround(input.mean[c]));
      table[v] = centred / Math.fround(input.std[c]);
    }
    const plane = data.subarray(c * width * height, (c + 1) * width * height);
    for (let i = 0, from = c; i < plane.length; i++, from += channels) plane[i] = table[source.data[from]];
  }
  return { channels, height, width, data, content: [height, width] };
}

/** Floats extended by zeros to the right and below, to sides of at least these lengths. */
function padded(map, least_height, least_width) {
  const height = Math.max(map.height, least_height), width = Math.max(map.width, least_width);
  if (height === map.height && width === map.width) return map;
  const data = new Float32Array(map.channels * height * width);
  for (let c = 0; c < map.channels; c++) {
    for (let y = 0; y < map.height; y++) {
      const from = (c * map.height + y) * map.width;
      data.set(map.data.subarray(from, from + map.width), (c * height + y) * width);
    }
  }
  return { ...map, height, width, data };
}

/** Rounded to the nearest whole number, halves to the even one, as Python's `round`. */
export function halfEven(value) {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}

/** A made-up image, the same here and in `description.py`, by which a device's results are checked. */
export function probe(width, height) {
  const data = new Uint8ClampedArray(width * height * 4);
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at += 4) {
      for (let c = 0; c < 3; c++) data[at + c] = (7 * x + 13 * y + 101 * c + ((x * y) >> 4)) & 255;
      data[at + 3] = 255;
    }
  }
  return { width, height, data };
}
