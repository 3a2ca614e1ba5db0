// What takes long, away from the page, so that it answers meanwhile: pictures, and the two networks. Each message has one answer.

import { normalised, square } from "./image.js";

const ORT = new URL("../ort/ort.wasm.bundle.min.mjs", import.meta.url).href;
const WASM = new URL("../ort/ort-wasm-simd-threaded.wasm", import.meta.url).href;

let ort;
const sessions = {}; // promises of them, by name

/** The bytes at an address; `told` hears how many have come. */
async function fetched(address, told = () => {}) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${new URL(address).pathname} cannot be had: the server says ${answer.status} ${answer.statusText}.`);
  const parts = [];
  let length = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    told((length += value.length));
  }
  const whole = new Uint8Array(length);
  for (let at = 0; parts.length; ) {
    const part = parts.shift(); // one at a time, so that a large file is not held twice
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

async function session(name, file) {
  if (ort === undefined) {
    ort = await import(ORT);
    Object.assign(ort.env.wasm, { numThreads: 1, wasmPaths: { wasm: WASM } });
  }
  const told = (bytes) => postMessage({ name, loaded: bytes / file.bytes });
  const content = await fetched(file.address, told);
  if (content.length !== file.bytes) {
    throw new Error(`${name} has ${content.length} bytes and not ${file.bytes}: it was not copied whole. Copy the folder again, and reload.`);
  }
  const beside = await Promise.all(file.beside.map(async ({ path, address }) => ({ path, data: await fetched(address) })));
  return ort.InferenceSession.create(content, { executionProviders: ["wasm"], externalData: beside });
}

/** The network of a file, loaded once; after a failure the next who asks tries again. */
function opened(name, file) {
  sessions[name] ??= session(name, file);
  sessions[name].catch(() => delete sessions[name]);
  return sessions[name];
}

const works = {
  /** Load a network. */
  async open({ name, file }) {
    await opened(name, file);
  },

  /** Outputs, by name, for one picture. */
  async picture({ name, file, picture, preprocess }) {
    const { size, mean, std, interpolation } = preprocess;
    const pixels = normalised(await square(picture, size, interpolation), mean, std);
    const network = await opened(name, file);
    return outputs(network, { [network.inputNames[0]]: new ort.Tensor("float32", pixels, [1, 3, size, size]) });
  },

  /** Outputs, by name, for token ids, {input: {ids: number[], shape: number[]}}. */
  async text({ name, file, inputs }) {
    const network = await opened(name, file);
    const given = Object.entries(inputs).map(([input, { ids, shape }]) => [input, new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), shape)]);
    return outputs(network, Object.fromEntries(given));
  },
};

async function outputs(network, inputs) {
  const found = Object.entries(await network.run(inputs)).map(([name, tensor]) => [name, { data: tensor.data, shape: tensor.dims }]);
  return Object.fromEntries(found);
}

let last = Promise.resolve(); // one after the other: more at a time would need more memory, and be no faster
onmessage = ({ data: { id, work, ...given } }) => {
  last = last.then(async () => {
    try {
      postMessage({ id, answer: await works[work](given) });
    } catch (error) {
      postMessage({ id, error: error.message || String(error) });
    }
  });
};
postMessage({ ready: true });
