// Runs the classifier that tl-auto export wrote, in the browser: see docs/serving.md.
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";

const MODEL = "classifier.onnx";
const SHOWN = 5;
const [input, status, canvas, list] = ["file", "status", "image", "classes"].map((id) =>
  document.getElementById(id));

// onnxruntime-web does not give a model's metadata. They are field 14 of the file, a protobuf
// message, each with a key (field 1) and a value (field 2).
function metadata(file) {
  const text = new TextDecoder();
  const pairs = fields(file).filter(([number]) => number === 14).map(([, entry]) =>
    fields(entry).map(([, bytes]) => text.decode(bytes)));
  return Object.fromEntries(pairs);
}

function fields(bytes) {
  const found = [];
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[at++];
      value += (byte % 128) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint(), kind = tag % 8;
    const length = kind === 1 ? 8 : kind === 5 ? 4 : varint();
    if (kind !== 0) at += length;  // of kind 0, the number itself was read
    if (kind === 2) found.push([(tag - kind) / 8, bytes.subarray(at - length, at)]);
  }
  return found;
}

async function load() {
  const response = await fetch(MODEL);
  if (!response.ok) throw new Error(`${MODEL} is not beside this page. Write it with tl-auto export.`);
  const file = new Uint8Array(await response.arrayBuffer());
  return { session: await ort.InferenceSession.create(file), classes: JSON.parse(metadata(file).classes) };
}

// Pixels as the program reads them: upright, colours as stored, transparency on white.
async function pixels(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const { width, height } = Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, width, height).data;
  const rgb = new Uint8Array(3 * width * height);
  for (let i = 0, j = 0; i < rgba.length; i += 4) {
    rgb[j++] = rgba[i];
    rgb[j++] = rgba[i + 1];
    rgb[j++] = rgba[i + 2];
  }
  return new ort.Tensor("uint8", rgb, [1, height, width, 3]);
}

async function classify({ session, classes }, file) {
  const images = await pixels(file);
  const { probabilities } = await session.run({ images });
  return classes.map((name, i) => [name, probabilities.data[i]]).sort((a, b) => b[1] - a[1]);
}

function show(ranked) {
  list.replaceChildren(...ranked.slice(0, SHOWN).map(([name, probability]) => {
    const row = document.createElement("li"), percent = `${(100 * probability).toFixed(1)}%`;
    row.style.setProperty("--share", percent);
    row.append(...[name, percent].map((text) =>
      Object.assign(document.createElement("span"), { textContent: text })));
    return row;
  }));
}

try {
  const classifier = await load();
  let last = Promise.resolve();  // onnxruntime-web runs a session once at a time
  const answer = (file) => {
    if (!file) return;
    last = last.then(async () => {
      list.replaceChildren();
      canvas.hidden = true;
      status.textContent = `Classifying ${file.name} ...`;
      try {
        show(await classify(classifier, file));
        canvas.hidden = false;
        status.textContent = file.name;
      } catch (error) {
        status.textContent = `${file.name} cannot be classified: ${error.message}`;
      }
    });
  };
  input.onchange = () => answer(input.files[0]);
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    answer(event.dataTransfer.files[0]);
  });
  input.disabled = false;
  status.textContent = `Knows ${classifier.classes.length} classes. Images stay on this device.`;
} catch (error) {
  status.textContent = `The classifier cannot be loaded: ${error.message}`;
}
