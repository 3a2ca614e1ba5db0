// CLIP's tokenizer: byte pair encoding of lower-case text, as open_clip has it. What it reads is first cleaned as ftfy does, but for one
// thing: text that was decoded in the wrong encoding ("schÃ¶n") stays as it is.

const LIGATURES = {
  Ĳ: "IJ", ĳ: "ij", ŉ: "ʼn", Ǳ: "DZ", ǲ: "Dz", ǳ: "dz", Ǆ: "DŽ", ǅ: "Dž", ǆ: "dž", Ǉ: "LJ", ǈ: "Lj", ǉ: "lj", Ǌ: "NJ", ǋ: "Nj", ǌ: "nj",
  ﬀ: "ff", ﬁ: "fi", ﬂ: "fl", ﬃ: "ffi", ﬄ: "ffl", ﬅ: "ſt", ﬆ: "st",
};
const LIGATURE = new RegExp(`[${Object.keys(LIGATURES).join("")}]`, "g");
const WIDE = /[\u3000\uff01-\uffef]/g; // forms of full and half width
const CONTROL = /[\0-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]/g;
const SPACES = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/; // as Python splits
const STARTS = "<start_of_text>";
const ENDS = "<end_of_text>";
const WORDS = new RegExp(`${STARTS}|${ENDS}|'s|'t|'re|'ve|'m|'ll|'d|\\p{L}+|\\p{N}|[^ \\p{L}\\p{N}]+`, "giu");

/** HTML's character references, decoded by the browser: nothing in the text is run, or shown. */
function decoded(reference) {
  const page = new DOMParser().parseFromString(`<textarea>${reference}</textarea>`, "text/html");
  return page.querySelector("textarea").value;
}

/** `&eacute;`, `&EACUTE;` and `&#233;`, with the semicolon. */
function unescapedWhole(text) {
  return text.replace(/&#?[0-9A-Za-z]{1,24};/g, (reference) => {
    const found = decoded(reference);
    if (!found.includes(";") || found === ";") return found;
    const small = reference.toLowerCase();
    if (reference !== reference.toUpperCase() || found !== reference || reference[1] === "#") return reference;
    const other = decoded(small);
    return other.includes(";") ? reference : other.toUpperCase();
  });
}

/** All that HTML knows, also `&amp` without the semicolon. */
const unescaped = (text) => text.replace(/&(#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?)/g, decoded);

function fixedOnce(text, html) {
  const c1 = new TextDecoder("windows-1252");
  return (html ? unescapedWhole(text) : text)
    .replace(/[\x80-\x9f]/g, (letter) => c1.decode(Uint8Array.of(letter.charCodeAt(0))))
    .replace(LIGATURE, (letter) => LIGATURES[letter])
    .replace(WIDE, (letter) => letter.normalize("NFKC"))
    .replace(/[\u201c-\u201f]/g, '"')
    .replace(/[\u02bc\u2018-\u201b]/g, "'")
    .replace(/\r\n|[\r\u2028\u2029\x85]/g, "\n")
    .replace(/\p{Cs}/gu, "\ufffd")
    .replace(/\x1b\[[\d;]*[a-zA-Z]/g, "")
    .replace(CONTROL, "")
    .normalize("NFC");
}

/** The text that is read: ftfy's fixes, then HTML's references, then one space between words, in lower case. */
export function cleaned(text) {
  const html = !text.includes("<");
  for (let before = null; before !== text; ) {
    before = text;
    text = fixedOnce(text, html);
  }
  return unescaped(unescaped(text)).split(SPACES).filter(Boolean).join(" ").toLowerCase();
}

/** A letter for each byte, as GPT-2 has them. */
function lettersOfBytes() {
  const plain = (byte) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  const order = [...Array(256).keys()].filter(plain);
  const letters = Array(256);
  order.forEach((byte) => (letters[byte] = String.fromCharCode(byte)));
  for (let byte = 0, next = 256; byte < 256; byte++) {
    if (plain(byte)) continue;
    letters[byte] = String.fromCharCode(next++);
    order.push(byte);
  }
  return { letters, order };
}

export class Tokenizer {
  /** @param {string[]} merges pairs of parts with a space between them, in the order in which they are joined */
  constructor(merges) {
    const { letters, order } = lettersOfBytes();
    const single = order.map((byte) => letters[byte]);
    const parts = [...single, ...single.map((letter) => `${letter}</w>`), ...merges.map((merge) => merge.replace(" ", "")), STARTS, ENDS];
    this.letters = letters;
    this.ids = new Map(parts.map((part, id) => [part, id]));
    this.ranks = new Map(merges.map((merge, rank) => [merge, rank]));
    this.start = this.ids.get(STARTS);
    this.end = this.ids.get(ENDS);
    this.known = new Map([[STARTS, [this.start]], [ENDS, [this.end]]]);
  }

  /** Ids of one word, whose bytes are written as letters. */
  word(letters) {
    if (this.known.has(letters)) return this.known.get(letters);
    const parts = [...letters];
    parts[parts.length - 1] += "</w>";
    for (;;) {
      let best = Infinity;
      for (let at = 0; at + 1 < parts.length; at++) {
        best = Math.min(best, this.ranks.get(`${parts[at]} ${parts[at + 1]}`) ?? Infinity);
      }
      if (best === Infinity) break;
      for (let at = 0; at + 1 < parts.length; at++) {
        if (this.ranks.get(`${parts[at]} ${parts[at + 1]}`) === best) parts.splice(at, 2, parts[at] + parts[at + 1]);
      }
    }
    const ids = parts.map((part) => this.ids.get(part));
    this.known.set(letters, ids);
    return ids;
  }

  /** All ids of a text, with those of its start and end. */
  encode(text) {
    const utf8 = new TextEncoder();
    const words = cleaned(text).match(WORDS) ?? [];
    return [this.start, ...words.flatMap((word) => this.word([...utf8.encode(word)].map((byte) => this.letters[byte]).join(""))), this.end];
  }
}
