"""The size of an image as a baseline JPEG file, without leaving the device.

JPEG (in)compressibility is the classic sanity-check reward of DDPO
(arXiv 2305.13301): no model, no prompt, an effect anyone can see. The encoder
is ITU-T T.81 with the fixed-point arithmetic of libjpeg, so the byte count is
the file's own. With sample s, 8 x 8 block x, quantiser q (Annex K):

  (1)  Y, Cb, Cr = (M [R G B] + half) >> 16                   colour, int32
  (2)  C = sum of 2 x 2 chroma samples, >> 2                  4:2:0
  (3)  X = ((D ((D (x - 128)) >> 11)^T) >> 15)^T ~ 8 DCT(x)   two passes
  (4)  z = sign(X) floor((|X| + 4 q) / 8 q)                   in zig-zag order
  (5)  bits = sum_blocks  H_dc[c(d)] + c(d)                   d = DC difference
            + sum_{z != 0} H_ac[run % 16, c(z)] + c(z) + ZRL (run // 16) + EOB
  (6)  bytes = 625 + ceil(bits / 8) + number of 0xFF bytes among them

c(v) is the bit length of |v|; H are the lengths of the standard Huffman codes;
625 is the header Pillow and libjpeg write; (6) needs the bits themselves,
because every 0xFF of the entropy-coded data is followed by a stuffed zero.
Nothing here has a useful gradient; `jpeg_surrogate` replaces (5) by

  (7)  bits ~ sum 2 log2(1 + |DCT(x)| / q)
"""

import io

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Int32, Shaped
import numpy as np
from PIL import Image

from gen_rl.fields import Positive, Quality
from gen_rl.types import AnyArray, Array, Reward, RewardInputs, RewardOut

HEADER = 625  # SOI + APP0 + 2 DQT + SOF0 + 4 DHT + SOS + EOI, in bytes

# T.81 Annex K.1, row by row.
_LUMA = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57
69 56 14 17 22 29 51 87 80 62 18 22 37 56 68 109 103 77 24 35 55 64 81 104 113
92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
_CHROMA = (
  """17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99
99 99 47 66 99 99 99 99 99 99"""
  + 32 * ' 99'
)
# T.81 Annex K.3: number of codes of length 1..16, then the symbols in order;
# an AC symbol is run * 16 + category.
_DC = '000102030405060708090a0b'
_HUFFMAN = (
  ((0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0), _DC),
  ((0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0), _DC),
  (
    (0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125),
    '01020300041105122131410613516107227114328191a1082342b1c11552d1f0243362'
    '7282090a161718191a25262728292a3435363738393a434445464748494a5354555657'
    '58595a636465666768696a737475767778797a838485868788898a9293949596979899'
    '9aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8'
    'd9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa',
  ),
  (
    (0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119),
    '000102031104052131061241510761711322328108144291a1b1c109233352f0156272'
    'd10a162434e125f11718191a262728292a35363738393a434445464748494a53545556'
    '5758595a636465666768696a737475767778797a82838485868788898a929394959697'
    '98999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6'
    'd7d8d9dae2e3e4e5e6e7e8e9eaf2f3f4f5f6f7f8f9fa',
  ),
)
_ZIGZAG = np.array(
  sorted(
    range(64),
    key=lambda i: (
      i // 8 + i % 8,
      (i // 8) if (i // 8 + i % 8) % 2 else (i % 8),
    ),
  )
)


def _huffman(counts: tuple[int, ...], symbols: str) -> np.ndarray:
  """Canonical codes [256 2] (code, length) by symbol; length 0: no code."""
  table = np.zeros((256, 2), np.int32)
  code, values = 0, iter(bytes.fromhex(symbols))
  for length, count in enumerate(counts, 1):
    for _ in range(count):
      table[next(values)] = code, length
      code += 1
    code *= 2
  return table


_TABLES = np.stack([_huffman(*spec) for spec in _HUFFMAN])


# The 8-point DCT of libjpeg's "islow", 2^13 sqrt(8) times the orthonormal one
# and summed to integers; columns 4..7 mirror 3..0 (odd rows with a minus).
_HALF_DCT = np.array(
  [
    [8192, 8192, 8192, 8192],
    [11363, 9633, 6437, 2260],
    [10703, 4433, -4433, -10703],
    [9633, -2259, -11362, -6436],
    [8192, -8192, -8192, 8192],
    [6437, -11362, 2261, 9633],
    [4433, -10704, 10704, -4433],
    [2260, -6436, 9633, -11363],
  ],
  np.int32,
)
_SIGN = np.array([[1], [-1]] * 4)
_INT_DCT = np.concatenate([_HALF_DCT, _SIGN * _HALF_DCT[:, ::-1]], axis=1)
_DCT = np.cos(np.pi / 8 * np.outer(np.arange(8), np.arange(8) + 0.5)) / 2
_DCT[0] /= np.sqrt(2)


def quantization_tables(quality: int) -> Int32[np.ndarray, '2 8 8']:
  """Luma and chroma steps for quality 1..100, as in libjpeg."""
  if not 1 <= quality <= 100:
    raise ValueError(f'JPEG quality is 1..100, not {quality}')
  scale = 5000 // quality if quality < 50 else 200 - 2 * quality
  base = np.array([_LUMA.split(), _CHROMA.split()], np.int32)
  return np.clip((base * scale + 50) // 100, 1, 255).reshape(2, 8, 8)


def _ycc(rgb: Array) -> Array:
  """Equation (1): int32 [... 3] in 0..255 -> the same."""
  to_ycc = np.array(
    [[19595, 38470, 7471], [-11059, -21709, 32768], [32768, -27439, -5329]]
  )
  offset = np.array([0, 128 << 16, 128 << 16]) + [1 << 15, 32767, 32767]
  # A product per term: integer matrix products are slow or missing on TPU.
  ycc = sum(rgb[..., i, None] * to_ycc[:, i] for i in range(3)) + offset
  return ycc >> 16


def _pad(x: Array, rows: int, columns: int) -> Array:
  """Repeats the last row and column of [b h w] up to [b rows columns]."""
  h, w = x.shape[1:3]
  return jnp.pad(x, ((0, 0), (0, rows - h), (0, columns - w)), mode='edge')


def _blocks(x: Array) -> Array:
  """[b 8i 8j] -> [b i j 8 8]."""
  b, h, w = x.shape
  return x.reshape(b, h // 8, 8, w // 8, 8).transpose(0, 1, 3, 2, 4)


def _up(n: int, to: int) -> int:
  return -(-n // to) * to


def _planes(ycc: Array, bias: Array) -> tuple[Array, Array, Array]:
  """Y, Cb, Cr blocks [b i j 8 8] of [b h w 3], chroma summed 2 x 2 (times 4).

  Equation (2). Edges as in libjpeg: columns are repeated before, rows after
  the chroma is averaged; luma blocks past the image are not coded here.
  """
  h, w = ycc.shape[1:3]
  luma = _blocks(_pad(ycc[..., 0], _up(h, 8), _up(w, 8)))

  def chroma(x: Array) -> Array:
    x = _pad(x, _up(h, 2), _up(w, 16))
    x = x[:, ::2] + x[:, 1::2]
    x = x[:, :, ::2] + x[:, :, 1::2]
    x = x + jnp.resize(bias, x.shape[-1])
    return _blocks(_pad(x, _up(h, 16) // 2, x.shape[-1]))

  return luma, chroma(ycc[..., 1]), chroma(ycc[..., 2])


def _quantized(blocks: Array, table: np.ndarray) -> Array:
  """Equations (3) and (4): int32 [b n 8 8] samples -> [b n 64] in zig-zag."""
  x = blocks - 128
  for shift in (11, 15):  # along the columns, then along the rows
    terms = x[..., None, :] * _INT_DCT
    x = (terms.sum(-1) + (1 << (shift - 1))) >> shift
    x = x.swapaxes(-1, -2)
  size = (jnp.abs(x) + 4 * table) // (8 * table)
  return (jnp.sign(x) * size).reshape(*x.shape[:-2], 64)[..., _ZIGZAG]


def _symbols(z: Array, dc: np.ndarray, ac: np.ndarray) -> tuple[Array, Array]:
  """Codes of every position: (value, length) int32, both [b n 64].

  `z` [b n 64] are the blocks of one component in coding order. A position
  codes at most one thing: a coefficient (Huffman code, then its low bits), a
  ZRL (the 16th zero in a row with a coefficient still to come), or the EOB
  (right after the last one).
  """
  at = jnp.arange(64)
  previous = jnp.pad(z[:, :-1, 0], ((0, 0), (1, 0)))
  v = z.at[..., 0].add(-previous)
  nonzero = (z != 0) | (at == 0)
  last = jnp.max(jnp.where(nonzero, at, 0), -1, keepdims=True)
  seen = jax.lax.cummax(jnp.where(nonzero, at, 0), axis=z.ndim - 1)
  before = jnp.pad(seen[..., :-1], ((0, 0), (0, 0), (1, 0)))
  gap = at - before  # 1 + zeros before this position

  category = 32 - jax.lax.clz(jnp.abs(v))
  symbol = jnp.where(at == 0, category, ((gap - 1) % 16) * 16 + category)
  coded = jnp.where(
    (at == 0)[:, None], jnp.asarray(dc)[symbol], jnp.asarray(ac)[symbol]
  )
  low = jnp.where(v < 0, v - 1, v) & ((1 << category) - 1)
  value = (coded[..., 0] << category) | low
  length = coded[..., 1] + category

  zrl = ~nonzero & (gap % 16 == 0) & (at < last)
  end = at == last + 1
  for where, code in ((zrl, ac[0xF0]), (end, ac[0])):
    value = jnp.where(where, code[0], value)
    length = jnp.where(where, code[1], length)
  used = nonzero | zrl | end
  return jnp.where(used, value, 0), jnp.where(used, length, 0)


def _coding_order(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
  """Luma blocks by MCU (2 x 2 of them), the four of an MCU row by row.

  Returns (index [4 n], real [4 n]): which of the rows * columns blocks stands
  there, and whether there is one; libjpeg fills the gaps with copies of the
  DC before them, so that their difference is zero.
  """
  order = [
    (i + di, j + dj)
    for i in range(0, rows, 2)
    for j in range(0, columns, 2)
    for di in (0, 1)
    for dj in (0, 1)
  ]
  real = np.array([i < rows and j < columns for i, j in order])
  index = np.array([i * columns + j for i, j in order])
  # A gap points at the last real block before it.
  index = index[np.maximum.accumulate(np.where(real, np.arange(len(real)), 0))]
  return index, real


def _stream(value: Array, length: Array) -> tuple[Array, Array]:
  """Concatenated codes [b n] -> (bytes used [b], 0xFF bytes among them [b])."""
  b, n = length.shape
  end = jnp.cumsum(length, axis=-1)
  total = end[:, -1:]
  # libjpeg fills the last byte with ones.
  fill = -total % 8
  value = jnp.concatenate([value, (1 << fill) - 1], axis=-1).astype(jnp.uint32)
  length = jnp.concatenate([length, fill], axis=-1)
  start = jnp.concatenate([end - length[:, :-1], total], axis=-1)
  # A code (27 bits at most) lies in three 16-bit words, aligned in 48 bits.
  stop = start % 16 + length
  words = jnp.stack(
    [_shift(value, bits - stop) for bits in (16, 32, 48)], axis=-1
  )
  size = -(-27 * n // 16) + 3
  at = (start // 16)[..., None] + jnp.arange(3)
  packed = jax.vmap(
    lambda i, x: jnp.zeros(size, jnp.uint32).at[i].add(x, mode='drop')
  )(at.reshape(b, -1), words.reshape(b, -1))
  ones = (packed >> 8 == 0xFF).astype(jnp.int32) + (packed & 0xFF == 0xFF)
  return (total[:, 0] + 7) // 8, ones.sum(-1)


def _shift(x: Array, left: Array) -> Array:
  """The low 16 bits of x << left, right for a negative `left`; uint32."""
  up = x << jnp.clip(left, 0, 31).astype(jnp.uint32)
  down = x >> jnp.clip(-left, 0, 31).astype(jnp.uint32)
  # 48 - stop reaches 47: then nothing is left in this word.
  up = jnp.where(left > 31, 0, up)
  return jnp.where(left >= 0, up, down) & 0xFFFF


def jpeg_bytes(
  images: Float[AnyArray, 'b h w c'], quality: int = 95
) -> Float32[Array, ' b']:
  """Size of each image as a baseline 4:2:0 JPEG file, equations (1) to (6).

  The bytes Pillow writes with `save(f, 'JPEG', quality=quality)`: standard
  Huffman tables (no `optimize`), a JFIF header, no metadata.

  Args:
    images: RGB in [0, 1], any h and w; rounded to 8 bits first. Values
      outside are clipped, a NaN counts as 0 (the rewards below mark it).
    quality: 1..100, static.

  Returns:
    Bytes; piecewise constant, so without a gradient.

  Raises:
    ValueError: the quality or the number of channels is wrong.
  """
  tables = quantization_tables(quality)
  _check(images)
  b = images.shape[0]
  x = jnp.nan_to_num(jnp.asarray(images, jnp.float32), nan=0.0)
  rgb = jnp.round(jnp.clip(x, 0, 1) * 255).astype(jnp.int32)
  luma, *chroma = _planes(_ycc(rgb), jnp.array([1, 2]))
  index, real = _coding_order(*luma.shape[1:3])
  z = _quantized(luma.reshape(b, -1, 8, 8), tables[0])[:, index]
  z = z.at[..., 1:].multiply(real[:, None])
  y = _symbols(z, _TABLES[0], _TABLES[2])
  parts = [[c.reshape(b, -1, 4, 64) for c in y]]
  for plane in chroma:
    z = _quantized(plane.reshape(b, -1, 8, 8) >> 2, tables[1])
    c = _symbols(z, _TABLES[1], _TABLES[3])
    parts.append([a.reshape(b, -1, 1, 64) for a in c])
  value, length = (
    jnp.concatenate(p, axis=2).reshape(b, -1) for p in zip(*parts, strict=True)
  )
  size, stuffed = _stream(value, length)
  return (HEADER + size + stuffed).astype(jnp.float32)


def jpeg_surrogate(
  images: Float[AnyArray, 'b h w c'], quality: int = 95
) -> Float32[Array, ' b']:
  """A smooth stand-in for `jpeg_bytes`, equation (7), with a finite gradient.

  It has a kink wherever a coefficient is 0, most of them in a flat image: take
  small steps, large ones overshoot and make the file bigger.

  Args:
    images: RGB in [0, 1].
    quality: 1..100, static.

  Returns:
    About bytes: 0 to 25% too few on photographs, correlation with
    `jpeg_bytes` above 0.99 at qualities 50 to 100.

  Raises:
    ValueError: the quality or the number of channels is wrong.
  """
  tables = quantization_tables(quality)
  _check(images)
  x = 255 * jnp.asarray(images, jnp.float32)
  to_ycc = np.array(
    [
      [0.299, 0.587, 0.114],
      [-0.168735892, -0.331264108, 0.5],
      [0.5, -0.418687589, -0.081312411],
    ],
    np.float32,
  )
  ycc = jnp.einsum('bhwc,dc->bhwd', x, to_ycc) - np.float32([128, 0, 0])
  bits = 0.0
  planes = _planes(ycc, jnp.zeros(2))
  steps = tables[[0, 1, 1]]
  for plane, step, scale in zip(planes, steps, (1, 4, 4), strict=True):
    z = jnp.einsum('ux,bijyx,vy->bijvu', _DCT, plane / scale, _DCT) / step
    bits += 2 * jnp.log2(1 + jnp.abs(z)).sum((1, 2, 3, 4))
  return HEADER + bits / 8


def _reward(name: str, size, sign: float, quality: int, scale: float, **kw):
  """Reward sign * scale * kilobytes; a row with a NaN or inf is invalid."""
  quantization_tables(quality)

  def score(params, inputs: RewardInputs, key: Array) -> RewardOut:
    del params, key
    kilobytes = size(inputs.image, quality) / 1000
    valid = jnp.isfinite(inputs.image).all((1, 2, 3))
    return RewardOut(
      score=sign * scale * kilobytes,
      parts={'kilobytes': kilobytes},
      valid=valid,
    )

  return Reward(name, (), score, **kw)


def jpeg_compressibility(
  quality: Quality = 95, scale: Positive = 1.0
) -> Reward:
  """-scale * kilobytes (1000 bytes) of the JPEG file.

  `scale` 1 is DDPO's reward, 1 / 500 that of flow_grpo (its
  `jpeg_compressibility`; its `jpeg_incompressibility` has scale 1).
  """
  return _reward('jpeg_compressibility', jpeg_bytes, -1.0, quality, scale)


def jpeg_incompressibility(
  quality: Quality = 95, scale: Positive = 1.0
) -> Reward:
  """+scale * kilobytes (1000 bytes) of the JPEG file (DDPO, flow_grpo).

  Tested, not measured.
  """
  return _reward('jpeg_incompressibility', jpeg_bytes, 1.0, quality, scale)


def smooth_compressibility(
  quality: Quality = 95, scale: Positive = 1.0
) -> Reward:
  """-scale * `jpeg_surrogate` kilobytes, for objectives that differentiate."""
  return _reward(
    'smooth_compressibility',
    jpeg_surrogate,
    -1.0,
    quality,
    scale,
    differentiable=True,
  )


def host_jpeg_compressibility(
  quality: Quality = 95, scale: Positive = 1.0
) -> Reward:
  """`jpeg_compressibility` measured on the host, by Pillow writing the file.

  The score is the same number; takes and returns numpy arrays.
  """
  quantization_tables(quality)

  def score(params, inputs: RewardInputs, key: Array) -> RewardOut:
    del params, key
    media = np.asarray(inputs.image, np.float32)
    _check(media)
    valid = np.isfinite(media).all((1, 2, 3))
    x = np.where(np.isfinite(media), media, 0)
    kilobytes = np.array(
      [libjpeg_bytes(i, quality) / 1000 for i in x], np.float32
    )
    return RewardOut(-scale * kilobytes, {'kilobytes': kilobytes}, valid)

  return Reward('host_jpeg_compressibility', (), score, where='host')


def libjpeg_bytes(image: Shaped[np.ndarray, 'h w 3'], quality: int = 95) -> int:
  """Size of the file that libjpeg writes; `image` is uint8 or in [0, 1]."""
  if image.dtype != np.uint8:
    image = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
  with io.BytesIO() as file:
    Image.fromarray(image).save(
      file, 'JPEG', quality=quality, subsampling='4:2:0'
    )
    return file.tell()


def _check(images: AnyArray) -> None:
  if images.ndim != 4 or images.shape[-1] != 3:
    raise ValueError(
      f'JPEG takes RGB images [b h w 3], not an array of shape {images.shape}'
    )
