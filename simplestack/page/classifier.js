// Classify photos in the browser as the service does: images.py and inference.py in JavaScript.
import * as ort from "./onnxruntime.js";

const SIMD = Uint8Array.of( // a WebAssembly module with a SIMD instruction
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11);
const JPEG = "\xff\xd8";
const TILE = 1024; // pixels, the side of the squares to convert: some browsers limit the size of canvases
const MAX_THREADS = 4;
const ONE = 2 ** 22; // the weight 1 in Pillow's fixed-point arithmetic
const rounded = (number) => Math.round(number * 1e6) / 1e6;
const text = (bytes) => Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
const factor = (side, rules) => Math.max(1, Math.floor(side / (2 * rules.resize)));
let started;

/** Load the network once; return it with its metadata and rules. Throws an Error with a sentence; the next call tries again. */
export const load = () => (started ??= start().catch((error) => { started = undefined; throw error; }));

async function start() {
  if (!globalThis.WebAssembly?.validate(SIMD)) {
    throw new Error("This browser has no WebAssembly with SIMD, which the network needs: use a newer one.");
  }
  const [metadata, rules] = await Promise.all(["model.json", "rules.json"].map(async (path) => (await get(path)).json()));
  const [model, wasm] = await Promise.all(Object.entries(rules.integrity).map(
    async ([path, integrity]) => new Uint8Array(await (await get(path, integrity)).arrayBuffer())));
  // Threads share memory, which browsers allow only under the headers in _headers.
  ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(MAX_THREADS, navigator.hardwareConcurrency) : 1;
  ort.env.wasm.wasmBinary = wasm;
  return { metadata, rules, session: await ort.InferenceSession.create(model) };
}

async function get(path, integrity = "") {
  const response = await fetch(new URL(path, import.meta.url), { cache: "no-cache", integrity }).catch(() => null);
  if (response?.ok) return response;
  const other = integrity && ", or isn't the one that belongs to this page";
  throw new Error(`The file ${path} can't be loaded${other}: check the connection, and load the page again.`);
}

/** Return the answer of /predict?explain=1 for an image file or a camera's ImageBitmap. Throws an Error with a sentence. */
export async function classify(photo) {
  const { metadata, rules, session } = await load();
  const pixels = photo instanceof ImageBitmap ? resize(photo, 1, rules) : await read(photo, rules);
  const photos = new ort.Tensor("uint8", pixels, [1, rules.crop, rules.crop, 3]);
  const { logits, maps, similarity } = await session.run({ photos }, ["logits", "maps", "similarity"]);
  const highest = Math.max(...logits.data), best = logits.data.indexOf(highest);
  const exp = Array.from(logits.data, (logit) => Math.exp((logit - highest) / metadata.temperature)), sum = exp.reduce((a, b) => a + b);
  const [, , height, width] = maps.dims;
  const row = (y) => Array.from(maps.data.subarray(y * width, (y + 1) * width), rounded);
  const similar = rounded(Math.min(1, Math.max(0, similarity.data[0])));
  return {
    label: metadata.classes[best],
    confidence: rounded(exp[best] / sum),
    probabilities: Object.fromEntries(metadata.classes.map((name, i) => [name, rounded(exp[i] / sum)])),
    similarity: similar,
    unlike: metadata.unlike.threshold === null ? null : similar < metadata.unlike.threshold,
    map: Array.from({ length: height }, (_, y) => row(best * height + y)),
  };
}

/** Resize the shorter side of an image file to 256 pixels; return its middle, 224×224×3 uint8. Throws an Error with a sentence. */
export async function read(file, rules) {
  const bytes = new Uint8Array(await file.arrayBuffer()), start = text(bytes.subarray(0, 4));
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" }).catch(() => null);
  if (isCutOff(bytes, start)) throw new Error(rules.damaged);
  if (!bitmap) throw new Error("This browser can't read the file as an image: use a JPEG, PNG, WebP, GIF or BMP file.");
  const { width, height } = bitmap, side = Math.min(width, height), million = rules.max_pixels / 1e6;
  // The factor by which a JPEG's decoder reduces it in Python.
  const scale = start.startsWith(JPEG) ? Math.min(8, 2 ** Math.floor(Math.log2(factor(side, rules)))) : 1;
  if (width * height > rules.max_pixels * scale ** 2) {
    throw new Error(rules.too_many_pixels.replace(/\{(\w+)\}/g, (_, name) => ({ width, height, million })[name]));
  }
  return resize(bitmap, scale, rules);
}

/** Resize and crop a bitmap like Pillow, after the reduction by `scale` of its decoder; close it. */
function resize(bitmap, scale, rules) {
  const { width, height } = bitmap, side = Math.min(width, height);
  const reduction = scale * factor(Math.ceil(side / scale), rules);
  const small = reduce(bitmap, reduction);
  bitmap.close();
  const across = weights(width, small.width, side, reduction, rules);
  const down = weights(height, small.height, side, reduction, rules);
  // Pillow 13 resizes the columns of tall pictures first.
  const tall = small.height > rules.crop && small.height - rules.crop > 2 * (small.width - rules.crop);
  return tall ? resample(resample(small.data, small.width, down, false), small.width, across, true)
    : resample(resample(small.data, small.width, across, true), rules.crop, down, false);
}

/** Return whether the end of a file is missing: Firefox and Safari would decode the rest. */
function isCutOff(bytes, start) {
  if (start === "\x89PNG") return !text(bytes.subarray(-(2 ** 16))).includes("IEND");
  if (start === "GIF8") return bytes.findLast((byte) => byte) !== 0x3b;
  if (start.startsWith("BM")) return new DataView(bytes.buffer).getUint32(2, true) > bytes.length;
  if (!start.startsWith(JPEG)) return false;
  let at = 2; // segments with a length follow; pixels begin with FF DA and end with FF D9
  while (bytes[at] === 0xff && bytes[at + 1] !== 0xda)
    at += bytes[at + 1] === 0xff ? 1 : 2 + 256 * bytes[at + 2] + bytes[at + 3];
  while (at >= 0 && bytes[at + 1] !== 0xd9) at = bytes.indexOf(0xff, at + 1);
  return at < 0;
}

/** Average squares of factor×factor pixels, on white, in whole numbers like Pillow. */
function reduce(bitmap, factor) {
  const width = Math.floor(bitmap.width / factor), height = Math.floor(bitmap.height / factor);
  const data = new Uint8Array(3 * width * height);
  const tile = Math.min(Math.ceil(TILE / factor), Math.max(width, height)), side = tile * factor;
  const context = new OffscreenCanvas(side, side).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  const half = factor ** 2 >> 1, share = Math.floor(2 ** 24 / factor ** 2);
  for (let top = 0; top < height; top += tile) for (let left = 0; left < width; left += tile) {
    context.fillRect(0, 0, side, side);
    context.drawImage(bitmap, -left * factor, -top * factor);
    const pixels = context.getImageData(0, 0, side, side).data;
    for (let y = 0; y < Math.min(tile, height - top); y++) for (let i = 0; i < 3 * Math.min(tile, width - left); i++) {
      const first = 4 * factor * (y * side + Math.floor(i / 3)) + (i % 3);
      let sum = half;
      for (let v = 0; v < factor; v++) for (let u = 0; u < factor; u++) sum += pixels[first + 4 * (v * side + u)];
      data[3 * ((top + y) * width + left) + i] = Math.floor((sum * share) / 2 ** 24);
    }
  }
  return { data, width, height };
}

/** Return, for each pixel of a resized side, the first source pixel and the weights of Pillow's antialiased bilinear filter. */
function weights(length, available, side, reduction, { resize, crop }) {
  const resized = Math.floor((resize * length) / side), margin = resized - crop, ratio = length / reduction / resized;
  const first = (margin >> 1) + (margin & (margin >> 1) & 1); // half of the margin, rounded like Python
  const [start, end] = [Math.fround(first * ratio), Math.fround((first + crop) * ratio)];
  const scale = Math.fround(end - start) / crop, support = Math.max(1, scale);
  return Array.from({ length: crop }, (_, i) => {
    const center = start + (i + 0.5) * scale;
    const [from, to] = [center - support, center + support].map((x) => Math.min(available, Math.max(0, Math.floor(x + 0.5))));
    const near = Array.from({ length: to - from }, (_, j) => Math.max(0, 1 - Math.abs((from + j - center + 0.5) / support)));
    const sum = near.reduce((a, b) => a + b);
    return { from, shares: near.map((share) => Math.floor((share / sum) * ONE + 0.5)) };
  });
}

/** Resize the rows, or else the columns, of RGB pixels with `width` columns. */
function resample(data, width, weights, rows) {
  const lines = rows ? data.length / 3 / width : width;
  const [step, apart, after] = rows ? [3, 3 * width, 3 * weights.length] : [3 * width, 3, 3];
  const resampled = new Uint8Array(3 * lines * weights.length);
  weights.forEach(({ from, shares }, i) => {
    for (let line = 0; line < lines; line++) for (let channel = 0; channel < 3; channel++) {
      let sum = ONE / 2;
      for (let j = 0; j < shares.length; j++) sum += shares[j] * data[line * apart + (from + j) * step + channel];
      resampled[line * after + i * step + channel] = Math.floor(sum / ONE);
    }
  });
  return resampled;
}
