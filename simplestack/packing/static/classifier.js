// Answers a photo in this browser as the service does: images.py and inference.py, in JavaScript.
import * as ort from "./onnxruntime.js";

const SIMD = Uint8Array.of( // a WebAssembly module with an instruction of that kind
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11);
const FORMATS = {
  JPEG: /^\xff\xd8\xff/, PNG: /^\x89PNG/, WEBP: /^RIFF.{4}WEBP/s, AVIF: /^.{4}ftypavi[fs]/s, GIF: /^GIF8/, BMP: /^BM/,
  HEIF: /^.{4}ftyp(hei|hev|mif|msf)/s, TIFF: /^(II\*\0|MM\0\*)/, PPM: /^P[1-6f][\s#]/,
};
const RARE = ["HEIF", "TIFF", "PPM"]; // most browsers can't read them
const CANNOT = "This browser can't read {kind} files: save it as a JPEG or PNG.";
const HEAD = 2 ** 16; // bytes, in which a file of another kind is known
const TILE = 1024; // pixels, the side of what is converted at once: some browsers have small canvases
const ONE = 2 ** 22; // a share of 1, as Pillow counts in whole numbers
const rounded = (number) => Math.round(number * 1e6) / 1e6;
const fill = (sentence, values) => new Error(sentence.replace(/\{(\w+)\}/g, (_, name) => values[name]));
let started;

/** Load the network, once; return what `classify` needs of it. Throws an Error with a sentence. */
export function load() {
  return (started ??= start().catch((error) => {
    started = undefined; // the next photo tries again
    throw error;
  }));
}

async function start() {
  if (!globalThis.WebAssembly?.validate(SIMD)) {
    throw new Error("This browser has no WebAssembly with SIMD, which the network needs: use a newer one.");
  }
  const [about, rules] = await Promise.all(["model.json", "rules.json"].map(async (path) => (await get(path)).json()));
  const [model, wasm] = await Promise.all(Object.entries(rules.integrity).map(
    async ([path, integrity]) => new Uint8Array(await (await get(path, integrity)).arrayBuffer())));
  ort.env.wasm.numThreads = 1; // more need headers that few static hosts send
  ort.env.wasm.wasmBinary = wasm;
  return { about, rules, session: await ort.InferenceSession.create(model) };
}

async function get(path, integrity = "") {
  const response = await fetch(new URL(path, import.meta.url), { cache: "no-cache", integrity }).catch(() => null);
  if (response?.ok) return response;
  const other = integrity && ", or isn't the one that belongs to this page";
  throw new Error(`The file ${path} can't be loaded${other}: check the connection, and load the page again.`);
}

/** Return what /predict?explain=1 answers to an image file. Throws an Error with a sentence. */
export async function classify(file) {
  const { about, rules, session } = await load();
  const photos = new ort.Tensor("uint8", await read(file, rules), [1, rules.crop, rules.crop, 3]);
  const { logits, maps, similarity } = await session.run({ photos });
  const highest = Math.max(...logits.data), best = logits.data.indexOf(highest);
  const exp = Array.from(logits.data, (logit) => Math.exp(logit - highest));
  const sum = exp.reduce((a, b) => a + b);
  const [, , height, width] = maps.dims;
  const row = (y) => Array.from(maps.data.slice(y * width, (y + 1) * width), rounded);
  const similar = rounded(Math.min(1, Math.max(0, similarity.data[0])));
  return {
    label: about.classes[best],
    confidence: rounded(exp[best] / sum),
    probabilities: Object.fromEntries(about.classes.map((name, i) => [name, rounded(exp[i] / sum)])),
    similarity: similar,
    unlike: about.unlike.threshold === null ? null : similar < about.unlike.threshold,
    map: Array.from({ length: height }, (_, y) => row(best * height + y)),
  };
}

/** Return the middle of an image file, 224×224×3 uint8, of which the shorter side has 256 pixels. */
async function read(file, { resize, crop, max_pixels, ...rules }) {
  const kind = recognize(new Uint8Array(await file.arrayBuffer()), rules);
  const { naturalWidth: width, naturalHeight: height } = await header(file);
  if (!width) throw fill(RARE.includes(kind) ? CANNOT : kind ? rules.unreadable : rules.unknown, { kind });
  const side = Math.min(width, height);
  const factor = (pixels) => Math.max(1, Math.floor(pixels / (2 * resize)));
  // By what the decoder of a JPEG reduces it in Python.
  const scale = kind === "JPEG" ? Math.min(8, 2 ** Math.floor(Math.log2(factor(side)))) : 1;
  if (width * height > max_pixels * scale ** 2) throw fill(rules.too_many_pixels, { width, height, million: max_pixels / 1e6 });
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" }).catch(() => {
    throw new Error(rules.damaged);
  });
  const reduction = scale * factor(Math.ceil(side / scale));
  const small = reduce(bitmap, reduction);
  bitmap.close();
  const weigh = (pixels, available) => {
    const resized = Math.floor((resize * pixels) / side), margin = resized - crop;
    const first = (margin >> 1) + (margin & (margin >> 1) & 1); // half of it, rounded as Python does
    const ratio = pixels / reduction / resized;
    return weights(first * ratio, (first + crop) * ratio, crop, available);
  };
  const across = weigh(width, small.width), down = weigh(height, small.height);
  // Pillow 13 begins with the columns of tall pictures.
  if (small.height > crop && small.height - crop > 2 * (small.width - crop)) {
    return squeeze(squeeze(small.data, small.width, down, false), small.width, across, true);
  }
  return squeeze(squeeze(small.data, small.width, across, true), crop, down, false);
}

/** Return the format of a file, if it is one of FORMATS. Throws what the service says of others. */
function recognize(bytes, rules) {
  if (!bytes.length) throw new Error(rules.empty);
  const head = new TextDecoder("latin1").decode(bytes.subarray(0, HEAD));
  const [other] = rules.others.find(([, at, magic]) => head.startsWith(magic, at)) ?? [];
  const kind = new RegExp(`^(?:${rules.svg})`, "s").test(head) ? "SVG" : other;
  if (kind) throw fill(rules.other, { kind });
  return Object.keys(FORMATS).find((format) => FORMATS[format].test(head));
}

/** Return an image element that has the size of a file's picture, or 0 if the browser can't tell. */
async function header(file) {
  const image = new Image();
  image.src = URL.createObjectURL(file);
  await new Promise((done) => { image.onload = image.onerror = done; });
  URL.revokeObjectURL(image.src);
  return image;
}

/** Average squares of factor×factor pixels, on white. */
function reduce(bitmap, factor) {
  const width = Math.floor(bitmap.width / factor), height = Math.floor(bitmap.height / factor);
  const data = new Uint8Array(3 * width * height);
  const tile = Math.min(Math.ceil(TILE / factor), Math.max(width, height)), side = tile * factor;
  const context = new OffscreenCanvas(side, side).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  for (let top = 0; top < height; top += tile) {
    for (let left = 0; left < width; left += tile) {
      context.fillRect(0, 0, side, side);
      context.drawImage(bitmap, -left * factor, -top * factor);
      const pixels = context.getImageData(0, 0, side, side).data;
      for (let y = 0; y < Math.min(tile, height - top); y++) {
        for (let i = 0; i < 3 * Math.min(tile, width - left); i++) {
          const first = 4 * factor * (y * side + Math.floor(i / 3)) + (i % 3);
          let sum = 0;
          for (let v = 0; v < factor; v++) for (let u = 0; u < factor; u++) sum += pixels[first + 4 * (v * side + u)];
          data[3 * ((top + y) * width + left) + i] = Math.floor(sum / factor ** 2 + 0.5);
        }
      }
    }
  }
  return { data, width, height };
}

/** Return of which pixels each of so many is made, by Pillow's antialiased bilinear filter. */
function weights(start, end, count, available) {
  const scale = Math.fround(Math.fround(end) - Math.fround(start)) / count, support = Math.max(1, scale);
  return Array.from({ length: count }, (_, i) => {
    const center = Math.fround(start) + (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(center - support + 0.5));
    const length = Math.min(available, Math.floor(center + support + 0.5)) - first;
    const shares = Array.from({ length }, (_, j) => Math.max(0, 1 - Math.abs((first + j - center + 0.5) / support)));
    const sum = shares.reduce((a, b) => a + b);
    return { first, shares: shares.map((share) => Math.floor((share / sum) * ONE + 0.5)) };
  });
}

/** Resize rows, or else columns, of a picture of some width by weights. */
function squeeze(data, width, weights, rows) {
  const lines = rows ? data.length / 3 / width : width;
  const [step, apart, after] = rows ? [3, 3 * width, 3 * weights.length] : [3 * width, 3, 3];
  const squeezed = new Uint8Array(3 * lines * weights.length);
  weights.forEach(({ first, shares }, i) => {
    for (let line = 0; line < lines; line++) {
      for (let channel = 0; channel < 3; channel++) {
        const from = line * apart + first * step + channel;
        let sum = ONE / 2;
        for (let j = 0; j < shares.length; j++) sum += shares[j] * data[from + j * step];
        squeezed[line * after + i * step + channel] = Math.floor(sum / ONE);
      }
    }
  });
  return squeezed;
}
