// From the network's outputs to what a reader understands: classes, boxes, maps of classes.

import { lerps } from "./resample.js";

/**
 * @param outputs {name: {data, dims}} of the network.
 * @param how of network.json: {kind: "softmax" | "class_maps" | "retinanet", ...}.
 * @param prepared what `prepare` made of the image.
 * @param size [height, width] of the image itself.
 */
export function decode(outputs, how, prepared, size) {
  return { softmax: classes, class_maps: classMap, retinanet: boxes }[how.kind](outputs, how, prepared, size);
}

/** Classification: {probabilities, logits}, both in the order of the classes. */
function classes(outputs, how) {
  const logits = outputs[how.output].data;
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = Float64Array.from(logits, (v) => Math.exp(v - most));
  const total = powers.reduce((a, b) => a + b, 0);
  return { kind: "classes", logits, probabilities: powers.map((v) => v / total) };
}

// ---- semantic segmentation ------------------------------------------------------------------------------------------

/** The likeliest class of every pixel: {indices, mapHeight, mapWidth, shares by class}. */
function classMap(outputs, how, prepared, size) {
  const { data, dims } = outputs[how.output];
  const count = dims[1];
  // scores of padding, which only tiny images have, are cut off
  const [rows, columns] = [2, 3].map((axis, i) =>
    Math.ceil((dims[axis] * prepared.content[i]) / [prepared.height, prepared.width][i]));
  const shrink = Math.min(1, how.most_pixels ** 0.5 / (size[0] * size[1]) ** 0.5);
  const [height, width] = size.map((side) => Math.max(1, Math.round(side * shrink)));
  const down = lerps(rows, height), along = lerps(columns, width);
  const indices = new Uint8Array(height * width);
  const best = new Float32Array(width), row = new Float32Array(columns);
  const counts = new Float64Array(count);
  for (let y = 0; y < height; y++) {
    best.fill(-Infinity);
    const line = indices.subarray(y * width, (y + 1) * width);
    for (let c = 0; c < count; c++) {
      const upper = (c * dims[2] + down.first[y]) * dims[3], lower = (c * dims[2] + down.second[y]) * dims[3];
      for (let x = 0; x < columns; x++) row[x] = data[upper + x] + (data[lower + x] - data[upper + x]) * down.share[y];
      for (let x = 0; x < width; x++) {
        const left = row[along.first[x]];
        const score = left + (row[along.second[x]] - left) * along.share[x];
        if (score > best[x]) {
          best[x] = score;
          line[x] = c;
        }
      }
    }
    for (const index of line) counts[index]++;
  }
  return { kind: "map", indices, mapHeight: height, mapWidth: width, shares: counts.map((n) => n / indices.length) };
}

// ---- detection ------------------------------------------------------------------------------------------------------

/** RetinaNet: {objects: [{box: [left, top, right, bottom] in the image's pixels, label, score}]}, best first. */
function boxes(outputs, how, prepared, size) {
  const scores = outputs[how.scores], deltas = outputs[how.deltas].data;
  const count = scores.dims[2];
  let start = 0;
  const found = [];
  for (const level of levelsOf(how, prepared)) {
    const anchors = level.rows * level.columns * level.cells.length;
    found.push(...candidates(scores.data, { start, anchors, count }, how).map(({ place, score }) => {
      const anchor = anchorOf(level, Math.floor(place / count) - start);
      const at = Math.floor(place / count) * 4;
      const box = clipped(decoded(anchor, deltas.subarray(at, at + 4), how), prepared.content);
      return { box, label: place % count, score };
    }));
    start += anchors;
  }
  if (start !== scores.dims[1]) throw new Error(`The network has ${scores.dims[1]} anchors, not ${start}.`);
  const kept = suppressed(found.sort((a, b) => b.score - a.score), how.nms_thresh).slice(0, how.max_detections);
  const [down, along] = [0, 1].map((i) => size[i] / prepared.content[i]);
  for (const one of kept) one.box = one.box.map((v, i) => v * (i % 2 ? down : along));
  return { kind: "boxes", objects: kept };
}

/** The levels of the pyramid for an input: its grid, strides, and the anchors around a grid point. */
function levelsOf(how, prepared) {
  return how.levels.map(({ stride, cells }) => {
    const rows = Math.ceil(prepared.height / stride), columns = Math.ceil(prepared.width / stride);
    const down = Math.floor(prepared.height / rows), along = Math.floor(prepared.width / columns);
    return { rows, columns, down, along, cells };
  });
}

function anchorOf(level, number) {
  const cell = level.cells[number % level.cells.length];
  const point = Math.floor(number / level.cells.length);
  const x = (point % level.columns) * level.along, y = Math.floor(point / level.columns) * level.down;
  return [cell[0] + x, cell[1] + y, cell[2] + x, cell[3] + y];
}

/** Places of the highest scores of a level above the threshold, as {place, score}. */
function candidates(logits, { start, anchors, count }, how) {
  const least = Math.log(how.score_thresh / (1 - how.score_thresh)); // of a logit; -Infinity for 0
  const found = [];
  for (let place = start * count; place < (start + anchors) * count; place++) {
    if (logits[place] > least) found.push({ place, score: 1 / (1 + Math.exp(-logits[place])) });
  }
  return found.sort((a, b) => b.score - a.score).slice(0, how.candidates);
}

function decoded([left, top, right, bottom], [dx, dy, dw, dh], { weights, clip }) {
  const width = right - left, height = bottom - top;
  const x = (dx / weights[0]) * width + left + width / 2, y = (dy / weights[1]) * height + top + height / 2;
  const w = Math.exp(Math.min(dw / weights[2], clip)) * width, h = Math.exp(Math.min(dh / weights[3], clip)) * height;
  return [x - w / 2, y - h / 2, x + w / 2, y + h / 2];
}

function clipped(box, [height, width]) {
  return box.map((v, i) => Math.min(Math.max(v, 0), i % 2 ? height : width));
}

/** Objects, best first, without those that overlap a better one of their class by more than `most`. */
function suppressed(objects, most) {
  const kept = [];
  for (const one of objects) {
    if (!kept.some((other) => other.label === one.label && overlap(other.box, one.box) > most)) kept.push(one);
  }
  return kept;
}

function overlap(a, b) {
  const width = Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0]));
  const height = Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  const area = ([left, top, right, bottom]) => (right - left) * (bottom - top);
  return (width * height) / (area(a) + area(b) - width * height);
}
