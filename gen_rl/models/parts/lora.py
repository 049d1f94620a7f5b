"""Low-rank adapters (LoRA, arXiv 2106.09685) as leaves of a parameter tree.

  y = x W + scale * (x A) B                                              (1)

`layers.Dense` adds the second term where its parameters hold the leaves
`kernel_lora_a` [in, rank], `kernel_lora_b` [rank, out] and
`kernel_lora_scale` []. So adapters are parameters like others: the config's
`trainable` picks them by name, copies ("ref", "ema") hold them alone, and a
checkpoint of them is small. B starts at zero, so the copy "ref" of before
training is the model without adapters, to the bit. Several adapters of one
model in one call are a `jax.vmap` over these leaves: the products with W stay
one.

qwix computes (1) to rounding and in float32 as fast (experiments/benchmarks),
but its products with float32 A and B carry float32 into a bfloat16 model, and
scanned blocks then fail. It also needs a run of the model to add adapters and
a second model without them; here both are a matter of which leaves there are.
"""

from collections.abc import Sequence
import functools
import re
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.build import ConfigError
from gen_rl.types import Array, Params
from gen_rl.utils import tree as tree_lib

TRAINABLE = '_lora_[ab]$'
INITS = ('kaiming', 'gaussian')
_KERNEL = re.compile(r'(^|/)kernel$')


def add(
  params: Params,
  pattern: str,
  rank: int,
  alpha: float,
  key: Array,
  init: Literal['kaiming', 'gaussian'] = 'kaiming',
) -> Params:
  """The same tree with adapters that change nothing yet.

  Args:
    params: of a model whose layers are `layers.Dense`.
    pattern: regular expression on the names of modules ('block_.*/qkv'); those
      of its matches that hold the kernel of a product get an adapter; stacked
      ones [layers in out] one a layer.
    rank: of A B.
    alpha: scale is alpha / rank.
    key: A is drawn from.
    init: how, in PEFT's words (`init_lora_weights`): 'kaiming', its default,
      is uniform of deviation 1 / sqrt(3 in); 'gaussian' is normal of deviation
      1 / rank, whatever the width, as diffusers' own adapters are. Adam moves
      B by the learning rate a step, so the speed of training goes with A.

  Raises:
    ConfigError: nothing matches, a rank of less than 1, or an unknown `init`.
  """
  if init not in INITS:
    raise ConfigError(f'lora.init is {init!r}; it is one of {", ".join(INITS)}')
  if rank < 1:
    raise ConfigError(f'lora.rank is {rank}; it must be at least 1')
  leaves = tree_lib.named(params)
  kernels = [
    n for n, x in leaves.items() if _KERNEL.search(n) and x.ndim in (2, 3)
  ]
  chosen = [n for n in kernels if re.search(pattern, n.rpartition('/')[0])]
  if not chosen:
    some = ', '.join(n.rpartition('/')[0] for n in kernels[:6])
    raise ConfigError(
      f'lora.pattern={pattern!r} finds no module with a kernel of a matrix '
      f'({some}, ...)'
    )
  for i, name in enumerate(sorted(chosen)):
    a, b, scale = _drawn(key, i, leaves[name].shape, rank, alpha, init)
    leaves |= {
      f'{name}_lora_a': a, f'{name}_lora_b': b, f'{name}_lora_scale': scale,
    }  # fmt: skip
  return tree_lib.nest(leaves)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _drawn(
  key: Array,
  i: int,
  kernel: tuple[int, ...],
  rank: int,
  alpha: float,
  init: str,
) -> tuple[Array, Array, Array]:
  """(A, B, scale) of the i-th kernel, one program for all of a shape."""
  *stack, rows, columns = kernel
  draw = jax.nn.initializers.normal(1 / rank)
  if init == 'kaiming':
    draw = jax.nn.initializers.variance_scaling(
      1 / 3, 'fan_in', 'uniform', batch_axis=tuple(range(len(stack)))
    )
  a = draw(jax.random.fold_in(key, i), (*stack, rows, rank), jnp.float32)
  b = jnp.zeros((*stack, rank, columns))
  return a, b, jnp.full(stack, alpha / rank, jnp.float32)


def merge(params: Params) -> Params:
  """The tree without adapters that computes the same: W + scale A B."""
  leaves = tree_lib.named(params)
  for name in [n for n in leaves if n.endswith('_lora_a')]:
    base = name.removesuffix('_lora_a')
    a, b = leaves.pop(name), leaves.pop(f'{base}_lora_b')
    scale, kernel = leaves.pop(f'{base}_lora_scale'), leaves[base]
    product = jnp.matmul(a, b, precision='highest')
    leaves[base] = (kernel + scale[..., None, None] * product).astype(
      kernel.dtype
    )
  return tree_lib.nest(leaves)


def mix(trees: Sequence[Params], weights: Sequence[float]) -> Params:
  """The tree that computes W + sum_i w_i scale A_i B_i, adapters side by side.

  AlignProp (arXiv 2310.03739) and DRaFT (arXiv 2309.17400) blend two rewards
  so, without training. With weights 1, 0 it is the first tree itself.

  Args:
    trees: that differ in their adapters alone, those of `add` with more ranks
      than are used: of the others B is 0.
    weights: w_i.

  Raises:
    ConfigError: the ranks they use do not fit into those there are.
  """
  mixed = [(tree_lib.named(t), w) for t, w in zip(trees, weights) if w]
  out = dict(mixed[0][0])
  if len(mixed) == 1 and mixed[0][1] == 1:
    return tree_lib.nest(out)
  for name in [n for n in out if n.endswith('_lora_a')]:
    other, total = f'{name[:-1]}b', 0
    a, b = np.array(out[name]), np.zeros_like(out[other])
    for leaves, weight in mixed:
      there = np.asarray(leaves[other])
      used = np.flatnonzero(np.moveaxis(there, -2, 0).any((*range(1, b.ndim),)))
      place, total = slice(total, total + len(used)), total + len(used)
      if total > b.shape[-2]:
        raise ConfigError(
          f'adapters that are mixed use {total} ranks or more, and lora.rank '
          f'is {b.shape[-2]}; set it to the sum of theirs'
        )
      a[..., place] = np.asarray(leaves[name])[..., used]
      b[..., place, :] = weight * there[..., used, :]
    out |= {name: a, other: b}
  return tree_lib.nest(out)
