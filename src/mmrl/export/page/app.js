// The page: photos in, answers out. What is shown of names and files is text, never HTML.

import { Classifier } from "./model.js";
import { NamesError, namesIn } from "./names.js";

const WAIT = 500; // ms without a key pressed before new names are read
const at = (id) => document.getElementById(id);
const photos = []; // {card, file, features, error}, in the order of the list
let model;
let head = null; // of the class list that counts; null while there is none
let asked = 0; // number of the last class list that was asked for

function element(tag, { text, ...values } = {}, ...inside) {
  const made = Object.assign(document.createElement(tag), values);
  if (text !== undefined) made.textContent = text;
  made.append(...inside);
  return made;
}

function say(text, failed = false) {
  at("status").className = failed ? "error" : "";
  at("status").textContent = text;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const counted = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

// ---- answers ----

function row({ name, probability, trained }) {
  const label = element("span", { className: "name", text: name });
  if (!trained && model.trained.length) label.append(element("small", { text: "new" }));
  const bar = element("meter", { min: 0, max: 1, value: probability, ariaLabel: `probability of ${name}` });
  return element("li", { className: trained ? "" : "is-new" }, label, element("span", { className: "share", text: percent(probability) }), bar);
}

function show(photo) {
  const lines = photo.card.querySelector(".lines");
  if (photo.error) lines.replaceChildren(element("p", { className: "error", text: photo.error }));
  else if (!photo.features) lines.replaceChildren(element("p", { className: "muted", text: "waiting ..." }));
  else if (!head) lines.replaceChildren(element("p", { className: "muted", text: "no answer: see the message under the classes." }));
  else {
    const found = model.rank(photo.features, head, Number(at("top").value));
    lines.replaceChildren(element("ol", { className: "ranks" }, ...found.map(row)));
  }
}

const showAll = () => photos.forEach(show);

// ---- classes ----

async function choose() {
  if (model === undefined) return;
  const own = at("trained").checked ? model.trained : [];
  const mine = ++asked;
  try {
    const made = await model.head([...own, ...(model.open ? namesIn(at("new").value) : [])], (name) => mine === asked && say(`Reading “${name}” ...`));
    if (mine !== asked) return;
    head = made;
    at("names-error").textContent = "";
    if (!at("status").classList.contains("error")) ready();
  } catch (error) {
    if (mine !== asked) return;
    head = null;
    at("names-error").textContent = error instanceof NamesError ? error.message : `The names cannot be read: ${error.message}`;
  }
  showAll();
}

// ---- photos ----

function cardOf(file) {
  const address = URL.createObjectURL(file);
  const image = element("img", { className: "photo", alt: "", src: address });
  image.onload = () => URL.revokeObjectURL(address);
  const card = element("li");
  image.onerror = () => {
    URL.revokeObjectURL(address);
    card.className = "no-photo";
    image.remove();
  };
  card.append(image, element("div", {}, element("p", { className: "file", text: file.name }), element("div", { className: "lines" })));
  return card;
}

async function take(files) {
  const taken = [...files].map((file) => ({ file, card: cardOf(file), features: null, error: "" }));
  if (taken.length === 0) return;
  photos.unshift(...taken);
  at("cards").prepend(...taken.map((photo) => photo.card));
  at("answers").hidden = false;
  taken.forEach(show);
  await opening;
  if (model === undefined) {
    taken.forEach((photo) => (photo.error = "The model could not be loaded."));
    taken.forEach(show);
    return;
  }
  for (const [number, photo] of taken.entries()) {
    if (!photos.includes(photo)) continue;
    say(`Looking at photo ${number + 1} of ${taken.length} ...`);
    try {
      photo.features = await model.look(photo.file);
    } catch (error) {
      photo.error = error.message;
    }
    show(photo);
  }
  ready();
}

function ready() {
  const answered = photos.filter((photo) => photo.features).length;
  say(answered ? `${counted(answered, "photo")} classified among ${counted(head?.names.length ?? 0, "class", "classes")}.` : "Ready.");
}

// ---- the page's parts ----

function loading({ name, loaded }) {
  const progress = at("progress");
  progress.hidden = loaded >= 1;
  progress.value = loaded;
  if (loaded >= 1) say("Preparing ...");
  else say(`Loading ${name === model?.manifest.text?.file ? "what reads new names" : "the model"}: ${Math.floor(100 * loaded)} %`);
}

function introduce() {
  const { trained } = model;
  at("classes").hidden = false;
  const few = trained.slice(0, 4).join(", ") + (trained.length > 4 ? ` and ${trained.length - 4} more` : "");
  at("about").textContent = trained.length ? `Trained on ${counted(trained.length, "class", "classes")}: ${few}.` : "Choose its classes below.";
  at("own").hidden = at("list").hidden = trained.length === 0;
  at("own").querySelector("span").textContent = `the ${trained.length} trained ones`;
  at("trained").disabled = !model.open;
  at("trained-names").replaceChildren(...trained.map((name) => element("li", { text: name })));
  at("open").hidden = !model.open;
  at("closed").hidden = model.open;
  at("closed").textContent = `New names cannot be typed: ${model.manifest.no_text}.`;
}

async function start() {
  say("Loading the model ...");
  try {
    model = await Classifier.open(new URL(".", document.baseURI), loading);
    introduce();
    await model.load();
    ready();
  } catch (error) {
    model = undefined;
    at("progress").hidden = true;
    say(`The model cannot be loaded: ${error.message}`, true);
    return;
  }
  await choose();
}

function listen() {
  const drop = at("drop");
  at("files").addEventListener("change", (event) => {
    take(event.target.files);
    event.target.value = ""; // so that the same file may be chosen again
  });
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault(); // a photo beside the frame must not be opened in place of the page
      drop.classList.toggle("over", kind === "dragenter" || kind === "dragover");
      if (kind === "drop") take(event.dataTransfer.files);
    });
  }
  document.addEventListener("paste", (event) => take(event.clipboardData.files));
  let timer;
  at("new").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(choose, WAIT);
  });
  at("trained").addEventListener("change", choose);
  at("top").addEventListener("change", showAll);
  at("clear").addEventListener("click", () => {
    photos.length = 0;
    at("cards").replaceChildren();
    at("answers").hidden = true;
    ready();
  });
}

listen();
const opening = start();
