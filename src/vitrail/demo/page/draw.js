// Results over their image, on a canvas. Every name is drawn or set as text, never as markup.

const css = ([r, g, b], alpha = 1) => `rgb(${r} ${g} ${b} / ${alpha})`;

/** Black or white, whichever reads better on a colour. */
const ink = ([r, g, b]) => (0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#000" : "#fff");

/**
 * @param canvas takes the size of the image.
 * @param image the image or video frame.
 * @param result of `Network.predict`; null = the image alone.
 * @param description of network.json.
 * @param shown {score: least score of boxes, opacity: of class maps}.
 */
export function draw(canvas, image, result, description, shown) {
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  if (result?.kind === "boxes") drawBoxes(context, result, description, shown.score);
  if (result?.kind === "map") drawMap(context, result, description, shown.opacity);
}

function drawBoxes(context, result, { classes, colours }, least) {
  const { width, height } = context.canvas;
  const line = Math.max(2, Math.min(width, height) / 200), letters = Math.max(11, Math.min(width, height) / 28);
  context.font = `600 ${letters}px system-ui, sans-serif`;
  context.textBaseline = "top";
  for (const { box, label, score } of [...result.objects].reverse()) { // the best lies on top
    if (score < least) continue;
    const scale = [width / result.width, height / result.height];
    const [left, top, right, bottom] = box.map((v, i) => v * scale[i % 2]);
    context.strokeStyle = css(colours[label]);
    context.lineWidth = line;
    context.strokeRect(left, top, right - left, bottom - top);
    const text = `${classes[label]} ${score.toFixed(2)}`;
    const wide = context.measureText(text).width + letters / 2, tall = letters * 1.25;
    const x = Math.max(0, Math.min(left - line / 2, width - wide)), y = Math.max(0, top - tall);
    context.fillStyle = css(colours[label]);
    context.fillRect(x, y, wide, tall);
    context.fillStyle = ink(colours[label]);
    context.fillText(text, x + letters / 4, y + letters * 0.15);
  }
}

function drawMap(context, result, { colours }, opacity) {
  const { indices, mapWidth: width, mapHeight: height } = result;
  const layer = new OffscreenCanvas(width, height);
  const pixels = new ImageData(width, height);
  const table = colours.map(([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r);
  const words = new Uint32Array(pixels.data.buffer);
  for (let i = 0; i < indices.length; i++) words[i] = table[indices[i]];
  layer.getContext("2d").putImageData(pixels, 0, 0);
  context.save();
  context.globalAlpha = opacity;
  context.imageSmoothingEnabled = false;
  context.drawImage(layer, 0, 0, context.canvas.width, context.canvas.height);
  context.restore();
}

/** An element with text and children. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** The result in words: a list of classes, of boxes, or the legend of a map. */
export function listed(result, description, shown, most = 5) {
  const { classes, colours } = description;
  if (result.kind === "classes") {
    const order = [...result.probabilities.keys()].sort((a, b) => result.probabilities[b] - result.probabilities[a]);
    return order.slice(0, most).map((i) => row(classes[i], result.probabilities[i], null));
  }
  if (result.kind === "map") {
    const order = [...result.shares.keys()].filter((i) => result.shares[i] > 0);
    return order.sort((a, b) => result.shares[b] - result.shares[a])
      .map((i) => row(classes[i], result.shares[i], colours[i]));
  }
  const found = result.objects.filter(({ score }) => score >= shown.score);
  if (!found.length) {
    const most = result.objects.length ? ` The highest is ${result.objects[0].score.toFixed(2)}.` : "";
    return [element("li", { class: "none" }, `Nothing with this score.${most}`)];
  }
  return found.map(({ label, score }) => row(classes[label], score, colours[label]));
}

function row(name, share, colour) {
  const bar = element("span", { class: "bar" }, element("span"));
  bar.firstChild.style.width = `${100 * share}%`;
  const label = element("span", { class: "name", title: name }, name);
  if (colour) {
    const patch = element("span", { class: "patch" });
    patch.style.background = css(colour);
    bar.firstChild.style.background = css(colour);
    label.prepend(patch);
  }
  return element("li", {}, label, element("span", { class: "share" }, `${(100 * share).toFixed(1)} %`), bar);
}
