// From an image file to the numbers that the image tower takes: the same steps, and the same rounding, as mmrl's own (Pillow's resampling).

const PRECISION = 22; // bits behind the point of Pillow's weights for 8-bit images
const STRIP = 2 ** 22; // pixels that are taken out of the browser's image at a time, 16 MB
const LONGEST = 16; // times the shorter side that the longer one is resized at most, as mmrl's own

const FILTERS = {
  bicubic: { support: 2, weight: (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0) },
  bilinear: { support: 1, weight: (x) => (x < 1 ? 1 - x : 0) },
};

/** What is wrong with a picture, for people. */
export class ImageError extends Error {}

/** Half goes to the even neighbour, as Python rounds. */
function roundEven(value) {
  const low = Math.floor(value);
  if (value - low !== 0.5) return Math.round(value);
  return low % 2 === 0 ? low : low + 1;
}

/**
 * How an image is resized and cut: the shorter side becomes `size`, then the centre is cropped.
 * @returns {{width: number, height: number, left: number, top: number}} of the whole resized image, and where the crop begins in it
 */
export function placed(width, height, size) {
  const shorter = Math.min(width, height);
  const [w, h] = [width, height].map((side) => (side === shorter ? size : Math.trunc((size * side) / shorter)));
  return { width: w, height: h, left: roundEven((w - size) / 2), top: roundEven((h - size) / 2) };
}

/** Of a side of an image, what is cut off at each end, and what is kept. */
function middle(side, shorter) {
  const most = LONGEST * shorter;
  const kept = Math.min(side, most + ((side - most) % 2));
  return [(side - kept) / 2, kept];
}

/** For output positions [from, from + count) of a side: where its weights begin, and the weights, whole numbers of 2^-22. */
function weightsOf(before, after, from, count, interpolation) {
  const scale = before / after;
  const rows = [];
  if (before === after || interpolation === "nearest") {
    let center = scale / 2; // added up, as Pillow does: where it falls between two pixels, rounding decides
    for (let at = 0; at < from + count; at++, center += scale) rows.push({ first: Math.floor(center), weights: [2 ** PRECISION] });
    return rows.slice(from);
  }
  const { support, weight } = FILTERS[interpolation];
  const wide = Math.max(scale, 1);
  for (let at = from; at < from + count; at++) {
    const center = (at + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support * wide + 0.5));
    const last = Math.min(before, Math.trunc(center + support * wide + 0.5));
    const found = [];
    let total = 0;
    for (let x = first; x < last; x++) {
      found.push(weight(Math.abs((x - center + 0.5) * (1 / wide))));
      total += found[found.length - 1];
    }
    const whole = (value) => Math.trunc(value * 2 ** PRECISION + (value < 0 ? -0.5 : 0.5));
    rows.push({ first, weights: found.map((value) => whole(total === 0 ? value : value / total)) });
  }
  return rows;
}

const HALF = 2 ** (PRECISION - 1);
const clipped = (sum) => Math.min(255, Math.max(0, Math.floor(sum / 2 ** PRECISION)));

/**
 * Resize and crop RGBA pixels as Pillow does: columns first, rounded to 8 bits, then rows.
 * @param {number} width of the image, pixels
 * @param {number} height of the image, pixels
 * @param {(top: number, rows: number) => Uint8ClampedArray} read gives whole rows of it as RGBA
 * @param {number} size of the square that is wanted
 * @returns {Uint8ClampedArray} RGB (size, size, 3)
 */
export function resized(width, height, read, size, interpolation = "bicubic") {
  const [[cutLeft, wide], [cutTop, tall]] = [width, height].map((side) => middle(side, Math.min(width, height)));
  const place = placed(wide, tall, size);
  const across = weightsOf(wide, place.width, place.left, size, interpolation);
  const down = weightsOf(tall, place.height, place.top, size, interpolation);
  const top = down[0].first;
  const last = down[size - 1];
  const rows = last.first + last.weights.length - top;
  const narrow = new Uint8ClampedArray(rows * size * 3);
  const strip = Math.max(1, Math.floor(STRIP / width));
  for (let start = 0; start < rows; start += strip) {
    const count = Math.min(strip, rows - start);
    const source = read(cutTop + top + start, count);
    for (let y = 0; y < count; y++) {
      for (let x = 0; x < size; x++) {
        const { first, weights } = across[x];
        let [r, g, b] = [HALF, HALF, HALF];
        for (let k = 0, at = (y * width + cutLeft + first) * 4; k < weights.length; k++, at += 4) {
          r += source[at] * weights[k];
          g += source[at + 1] * weights[k];
          b += source[at + 2] * weights[k];
        }
        const to = ((start + y) * size + x) * 3;
        narrow[to] = clipped(r);
        narrow[to + 1] = clipped(g);
        narrow[to + 2] = clipped(b);
      }
    }
  }
  const line = size * 3;
  const out = new Uint8ClampedArray(size * line);
  for (let y = 0; y < size; y++) {
    const { first, weights } = down[y];
    for (let x = 0; x < line; x++) {
      let sum = HALF;
      for (let k = 0, at = (first - top) * line + x; k < weights.length; k++, at += line) sum += narrow[at] * weights[k];
      out[y * line + x] = clipped(sum);
    }
  }
  return out;
}

/** RGB (size, size, 3) of an image file: upright as its EXIF says, transparency over white. */
export async function square(file, size, interpolation) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new ImageError("This browser cannot read it: it is no image, it is broken, or it is of a kind that browsers do not show.");
  }
  try {
    const { width, height } = bitmap;
    const rows = Math.min(height, Math.max(1, Math.floor(STRIP / width)));
    const context = new OffscreenCanvas(width, rows).getContext("2d", { willReadFrequently: true });
    const read = (top, count) => {
      context.fillStyle = "white";
      context.fillRect(0, 0, width, rows);
      context.drawImage(bitmap, 0, top, width, count, 0, 0, width, count);
      return context.getImageData(0, 0, width, count).data;
    };
    return resized(width, height, read, size, interpolation);
  } finally {
    bitmap.close();
  }
}

/**
 * Normalised planes of RGB (size, size, 3), in float32 as torch computes them: divided by 255, less the mean, divided by std.
 * @returns {Float32Array} (3, size, size)
 */
export function normalised(rgb, mean, std) {
  const f = Math.fround;
  const tables = mean.map((m, c) => Float32Array.from({ length: 256 }, (_, v) => f(f(f(v / 255) - f(m)) / f(std[c]))));
  const area = rgb.length / 3;
  const out = new Float32Array(rgb.length);
  for (let at = 0; at < area; at++) {
    for (let c = 0; c < 3; c++) out[c * area + at] = tables[c][rgb[at * 3 + c]];
  }
  return out;
}
