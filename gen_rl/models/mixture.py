"""A velocity network for the mixture world that needs no pretraining.

  v(x, s, c) = v_base(x, s, c) + MLP(x, s, c)                            (1)

with the exact v_base of `worlds.mixture` and an MLP whose last layer starts
at zero: the untrained network is the perfect model of the base. Time enters by
a few slow cosines, so that the MLP is smooth between the times of a training
grid and other samplers may use other times.
"""

from flax import linen as nn
import jax.numpy as jnp

from gen_rl.fields import Count
from gen_rl.models.parts.layers import PAD, Net
from gen_rl.types import Array, Params, PyTree
from gen_rl.worlds import mixture

# All of it on every device.
AXES = (
  (r'/(kernel|embedding)$', (None, None)),
  (r'/bias$', (None,)),
)
_FIRST_WORD = 2  # id of mixture.WORDS[0]; 0 is padding, 1 the unknown word


class _Correction(nn.Module):
  """The MLP of (1): [b 2], [b], tokens [b l] -> [b 2]."""

  vocab: int
  width: int
  layers: int

  @nn.compact
  def __call__(self, x: Array, s: Array, tokens: Array) -> Array:
    words = nn.Embed(self.vocab, self.width, name='words')(tokens)
    h = jnp.sum(words * (tokens != PAD)[..., None], 1)
    times = jnp.cos(jnp.pi * jnp.arange(1, 5) * s[:, None])
    h = h + nn.Dense(self.width, name='time')(times)
    h = h + nn.Dense(self.width, name='point')(x)
    for i in range(self.layers):
      h = nn.Dense(self.width, name=f'hidden{i}')(nn.silu(h))
    zero = nn.initializers.zeros
    return nn.Dense(x.shape[-1], kernel_init=zero, name='out')(nn.silu(h))


def mixture_net(
  width: Count = 64, layers: Count = 2, vocab: int = 6, length: int = 4
) -> Net:
  """Equation (1) as a velocity network on points [b 2].

  Args:
    width: of the hidden layers.
    layers: hidden layers after the first.
    vocab: token ids, padding and unknown included.
    length: prompt length in tokens.
  """
  module = _Correction(vocab, width, layers)

  def init(key: Array) -> Params:
    tokens = jnp.zeros((1, length), jnp.int32)
    return module.init(key, jnp.zeros((1, 2)), jnp.zeros(1), tokens)['params']

  def apply(params: Params, x: Array, t: Array, cond: PyTree) -> Array:
    x, tokens = x.astype(jnp.float32), cond['tokens']
    ids = jnp.arange(len(mixture.WORDS)) + _FIRST_WORD
    said = (tokens[..., None] == ids).any(1)
    named = jnp.where(said.any(-1), said.argmax(-1), -1)
    exact = mixture.velocity(mixture.base(named), x, t)
    return exact + module.apply({'params': params}, x, t, tokens)

  def null(cond: PyTree) -> PyTree:
    return {**cond, 'tokens': jnp.full_like(cond['tokens'], PAD)}

  return Net(init, apply, (2,), null, axes=AXES)
