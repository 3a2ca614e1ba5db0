// Class names: which of them are one name, and the prompts that are made of them. The rules are those of `mmrl.names` and `mmrl.templates`.

const LONGEST_PROMPT = 2000; // letters

/** What is wrong with the names, for people. */
export class NamesError extends Error {}

/** A name in a message. */
const quoted = (name) => `“${name.length > 60 ? `${name.slice(0, 60)} ...` : name}”`;

/** Equal for names that are one, up to case, spaces and underscores. */
export function nameKey(name) {
  const words = name.replaceAll("_", " ").split(/[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/).filter(Boolean);
  const folded = (part) => part.toLowerCase().toUpperCase().toLowerCase(); // ẞ, ß and ss are one
  return words.join(" ").replace(/[^ı]+/g, folded).replaceAll("ς", "σ"); // ı is a letter of its own, though its capital is I
}

/** The names of a text, one a line or with commas between them; blank lines count for nothing. */
export function namesIn(text) {
  return text
    .split("\n")
    .filter((line) => line.trim())
    .flatMap((line) => line.split(","))
    .map((name) => name.trim());
}

/** `names`, if each is there and there once. */
export function checked(names) {
  if (names.length === 0) throw new NamesError("There is no class to choose from. Type a name, or choose among the trained ones.");
  const first = new Map();
  names.forEach((name, at) => {
    const key = nameKey(name);
    if (!key) throw new NamesError("A name between two commas is blank. Take the comma away, or write a name.");
    if (first.has(key)) {
      const other = names[first.get(key)];
      const same = other === name ? "" : ` (as ${quoted(other)} and as ${quoted(name)})`;
      throw new NamesError(`The name ${quoted(name)} stands twice${same}: case, spaces and underscores make no difference. Take one of them away.`);
    }
    first.set(key, at);
  });
  return names;
}

/** The name as a prompt has it: a number in brackets, from (2) on, is left out, and underscores are spaces. */
export function spoken(name, underscores = false) {
  const found = /^(.*\S)\s*\((?:[2-9]|[1-9]\d+)\)\s*$/s.exec(name)?.[1] ?? name;
  return underscores ? found : found.replaceAll("_", " ");
}

/** The prompts of a name, one a template. */
export function prompts(name, templates, underscores = false) {
  const said = spoken(name, underscores);
  return templates.map((template) => {
    if (template.length + said.length > LONGEST_PROMPT) throw new NamesError(`The name ${quoted(name)} is too long for a prompt.`);
    return template.replace("{}", () => said);
  });
}

/** Ids of a prompt (context), with zeros behind its end. */
export function idsOf(tokenizer, prompt, context, name) {
  const ids = tokenizer.encode(prompt);
  if (ids.length > context) {
    const over = ids.length - context;
    throw new NamesError(`The name ${quoted(name)} is too long: its prompt has ${ids.length} tokens, ${over} more than the ${context} that are read.`);
  }
  return [...ids, ...Array(context - ids.length).fill(0)];
}
