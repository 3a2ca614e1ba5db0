// From features to probabilities, as `Classifier.rank` computes them.

const LEAST = 1e-30; // of a probability whose logarithm is taken

const dot = (a, b) => a.reduce((sum, value, at) => sum + value * b[at], 0);
const logSumExp = (values) => {
  const top = Math.max(...values);
  return top + Math.log(values.reduce((sum, value) => sum + Math.exp(value - top), 0));
};

/** Probabilities of logits. */
export function softmax(logits) {
  const all = logSumExp(logits);
  return logits.map((value) => Math.exp(value - all));
}

/** Logits of the classes that were trained on, of both features; `alpha` is the class token's share. */
function fused(ofClass, ofTokens, alpha, kind) {
  if (kind === "logits") return ofClass.map((value, at) => alpha * value + (1 - alpha) * ofTokens[at]);
  const [c, r] = [softmax(ofClass), softmax(ofTokens)];
  return c.map((value, at) => Math.log(Math.max(LEAST, alpha * value + (1 - alpha) * r[at])));
}

/**
 * Logits of one image. Trained classes get the scores of both image features, new ones those of the class token; where a list has both,
 * the class token decides how much probability the trained ones get together.
 * @param {{image: Float32Array, tokens: Float32Array | null}} features of the image, of length 1
 * @param {Float32Array[]} classes features, of length 1
 * @param {boolean[]} trained whether each counts as trained on
 * @param {{scale: number, alpha: number, fusion: string}} rule
 */
export function logits(features, classes, trained, rule) {
  const found = classes.map((each) => rule.scale * dot(features.image, each));
  const places = features.tokens === null ? [] : [...trained.keys()].filter((at) => trained[at]);
  if (places.length === 0) return found;
  const ofClass = places.map((at) => found[at]);
  const both = fused(ofClass, places.map((at) => rule.scale * dot(features.tokens, classes[at])), rule.alpha, rule.fusion);
  const shift = places.length === classes.length ? 0 : logSumExp(ofClass) - logSumExp(both);
  places.forEach((at, i) => (found[at] = both[i] + shift));
  return found;
}

/** The `top` classes, most probable first: positions with their probabilities. */
export function ranked(values, temperature, top) {
  const found = softmax(values.map((value) => value / temperature));
  return [...found.keys()].sort((a, b) => found[b] - found[a] || a - b).slice(0, top).map((at) => ({ at, probability: found[at] }));
}
