// The classifier of an exported folder: what `mmrl.runtime` does in Python.

import { checked, idsOf, nameKey, prompts } from "./names.js";
import { logits, ranked } from "./scores.js";
import { Tokenizer } from "./tokenizer.js";

const FORMAT = 1;
const TRAINED_ALONE = "trained"; // the kind of folder that knows no other classes

/** Messages to the worker, each with its answer. It is started from a blob, so that it has the page's rules on what may be fetched. */
class Work {
  constructor(told) {
    const start = `import ${JSON.stringify(new URL("worker.js", import.meta.url).href)};`;
    this.worker = new Worker(URL.createObjectURL(new Blob([start], { type: "text/javascript" })), { type: "module" });
    this.waiting = new Map();
    this.count = 0;
    this.ready = new Promise((resolve, reject) => {
      this.worker.onerror = () => reject(new Error("The page's own files are not all there. Copy the whole folder, and reload."));
      this.worker.onmessage = ({ data }) => {
        if (data.ready) resolve();
        else if (data.id === undefined) told(data);
        else this.settle(data);
      };
    });
  }

  settle({ id, answer, error }) {
    const { resolve, reject } = this.waiting.get(id);
    this.waiting.delete(id);
    if (error === undefined) resolve(answer);
    else reject(new Error(error));
  }

  async ask(work, given) {
    await this.ready;
    const id = this.count++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ id, work, ...given });
    });
  }
}

async function fetched(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address.pathname} cannot be had: the server says ${answer.status} ${answer.statusText}.`);
  return answer;
}

/** The text of a gzip file, also where the server unpacked it on the way. */
async function unzipped(address) {
  const content = new Uint8Array(await (await fetched(address)).arrayBuffer());
  if (content[0] !== 0x1f || content[1] !== 0x8b) return new TextDecoder().decode(content);
  return new Response(new Blob([content]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

/** Rows of a .npy file of float32 (C, d). */
function rowsOf(buffer) {
  const view = new DataView(buffer);
  const start = view.getUint8(6) === 1 ? 10 + view.getUint16(8, true) : 12 + view.getUint32(8, true);
  const header = new TextDecoder().decode(new Uint8Array(buffer, 0, start));
  const shape = /'descr': '<f4', 'fortran_order': False, 'shape': \((\d+), (\d+)\)/.exec(header);
  if (shape === null) throw new Error("The class features are not those of this page's format.");
  const [count, width] = [Number(shape[1]), Number(shape[2])];
  return Array.from({ length: count }, (_, at) => new Float32Array(buffer.slice(start + at * width * 4, start + (at + 1) * width * 4)));
}

/** Whether `calibration` is of these names, in any order, and of this prompt. */
function holdsFor(calibration, names, templates) {
  const own = [calibration.template].flat();
  const keys = (list) => list.map(nameKey).sort().join("\n");
  return keys(names) === keys(calibration.classes) && own.length === templates.length && own.every((each, at) => each === templates[at]);
}

/** A classifier: photos and names in, classes with probabilities out. */
export class Classifier {
  constructor(folder, manifest, told) {
    this.folder = folder;
    this.manifest = manifest;
    this.work = new Work(told);
    this.trained = manifest.class_names;
    this.open = manifest.text !== null; // to new names
    this.keys = new Map(this.trained.map((name, at) => [nameKey(name), at]));
    this.rows = []; // features of the trained classes
    this.named = new Map(); // features of others
    this.tokenizer = null;
  }

  /**
   * The classifier of an exported folder; its networks come when they are asked for.
   * @param {URL} folder where manifest.json is
   * @param {(state: {name: string, loaded: number}) => void} told hears which network comes, and what share of it is there
   */
  static async open(folder, told) {
    const manifest = await (await fetched(new URL("manifest.json", folder))).json();
    if (manifest.format !== FORMAT) throw new Error(`the folder has format ${manifest.format}, and this page reads ${FORMAT}: export it again.`);
    const made = new Classifier(folder, manifest, told);
    if (manifest.classes) made.rows = rowsOf(await (await fetched(new URL(manifest.classes.file, folder))).arrayBuffer());
    return made;
  }

  /** Load what looks at photos. */
  async load() {
    await this.work.ask("open", this.network("image"));
  }

  /** What the worker needs to load the network of a part, "image" or "text". */
  network(part) {
    const { files, [part]: own } = this.manifest;
    const address = (name) => new URL(name, this.folder).href;
    const beside = Object.keys(files).filter((name) => name === `${own.file}.data`); // weights that one file cannot hold
    const file = { address: address(own.file), bytes: files[own.file].bytes, beside: beside.map((path) => ({ path, address: address(path) })) };
    return { name: own.file, file };
  }

  /** What the network makes of a photo, for `rank`. */
  async look(picture) {
    const found = await this.work.ask("picture", { ...this.network("image"), picture, preprocess: this.manifest.preprocess });
    const data = (name) => found[name]?.data ?? null;
    return { image: data("class_features"), tokens: data("representation_features"), logits: data("logits") };
  }

  /**
   * The class list of some names. Raises NamesError where they cannot be one.
   * @param {(name: string) => void} told hears each new name before it is read
   */
  async head(names, told = () => {}) {
    checked(names);
    const at = names.map((name) => this.keys.get(nameKey(name)));
    const trained = at.map((place) => place !== undefined);
    if (this.manifest.kind === TRAINED_ALONE) return { names, at, trained };
    const alike = names.map((name, number) => trained[number] && this.trained[at[number]] === name); // another spelling has another prompt
    const fresh = names.filter((name, number) => !alike[number] && !this.named.has(name));
    if (fresh.length && this.tokenizer === null) {
      const lines = (await unzipped(new URL(this.manifest.text.vocabulary, this.folder))).split("\n");
      this.tokenizer = new Tokenizer(lines.slice(1).filter(Boolean)); // the first line is a comment
    }
    const inputs = fresh.map((name) => this.inputs(name)); // of all, before the first is read: one may be too long
    for (const [number, name] of fresh.entries()) {
      told(name);
      const found = await this.work.ask("text", { ...this.network("text"), inputs: inputs[number] });
      this.named.set(name, found[this.manifest.text.output].data);
    }
    return { names, trained, rows: names.map((name, number) => (alike[number] ? this.rows[at[number]] : this.named.get(name))) };
  }

  /** Token ids of a name's prompts, by the name of the network's input: (T, 1, context) each. */
  inputs(name) {
    const { inputs, context_length: context } = this.manifest.text;
    const given = inputs.map(({ name: input, templates, underscores }) => {
      const ids = prompts(name, templates, underscores).flatMap((prompt) => idsOf(this.tokenizer, prompt, context, name));
      return [input, { ids, shape: [templates.length, 1, context] }];
    });
    return Object.fromEntries(given);
  }

  /** The `top` classes of `head` for a photo, most probable first. */
  rank(features, head, top) {
    const found = ranked(this.logits(features, head), this.temperature(head), top);
    return found.map(({ at, probability }) => ({ name: head.names[at], probability, trained: head.trained[at] }));
  }

  logits(features, head) {
    if (features.logits !== null) return head.at.map((place) => features.logits[place]);
    const { rule, logit_scale: scale } = this.manifest;
    if (!["cosine", "fused"].includes(rule.name)) throw new Error(`this page does not know the rule “${rule.name}”: export it again.`);
    const tokens = rule.name === "fused" ? features.tokens : null;
    const trained = rule.trained_only === false ? head.trained.map(() => true) : head.trained;
    return logits({ ...features, tokens }, head.rows, trained, { ...rule, scale });
  }

  /** What logits are divided by: the calibration's, where it tells something of this list. */
  temperature(head) {
    const { calibration, one_scale: carries, template } = this.manifest;
    if (calibration === null) return 1;
    const known = head.trained.every(Boolean) && calibration.classes.every((name) => this.keys.has(nameKey(name)));
    return carries || known || holdsFor(calibration, head.names, template) ? calibration.temperature : 1;
  }
}
