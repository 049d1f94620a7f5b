"""Kernels against each other, and compiled for chips that are not there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import sharding
from gen_rl.models.parts import attention
from gen_rl.models.parts.attention import Shape
from gen_rl.utils import chips, flops, hlo

F32, BF16 = jnp.dtype('float32'), jnp.dtype('bfloat16')


def inputs(b, i, j, n, m, c, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(i + j), 3)
  shapes = (b, i, n, c), (b, j, m, c), (b, j, m, c)
  return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes)]


SPLASH = functools.partial(attention.splash, interpret=True)


def loss(out):
  return (jnp.sin(out.astype(jnp.float32)) * jnp.arange(out.shape[1])[:, None,
          None]).mean(), out  # fmt: skip


# Lengths of released networks are no multiples of blocks: 333 text tokens
# beside 1,024 of a picture, 77 that many see, prompts of any length.
@pytest.mark.parametrize(
  ('sizes', 'causal', 'padded'),
  [
    ((2, 150, 150, 2, 2, 64), False, False),
    ((1, 140, 77, 2, 2, 40), False, True),
    ((2, 200, 200, 4, 2, 32), True, True),
  ],
)
def test_splash_is_xla_with_gradients(sizes, causal, padded):
  q, k, v = inputs(*sizes)
  visible = None
  if padded:
    hidden = jax.random.bernoulli(jax.random.key(0), 0.3, k.shape[:2])
    visible = ~hidden.at[:, 0].set(False)
  how = dict(visible=visible, causal=causal)

  def of(attend):
    f = lambda q, k, v: loss(attend(q, k, v, **how))
    return jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))(q, k, v)

  (_, want), gradients = of(attention.sdpa)
  (_, got), others = of(SPLASH)
  for a, b in zip((want, *gradients), (got, *others), strict=True):
    np.testing.assert_allclose(b, a, rtol=0, atol=5e-6 * float(abs(a).max()))


def test_a_row_of_which_no_key_is_seen_is_zero_and_teaches_nothing():
  q, k, v = inputs(2, 128, 128, 1, 1, 8)
  visible = jnp.ones((2, 128), bool).at[0].set(False)
  f = lambda q, k, v: loss(SPLASH(q, k, v, visible))
  gradients, out = jax.jit(jax.grad(f, (0, 1, 2), has_aux=True))(q, k, v)
  for x in (out, *gradients):
    assert not x[0].any() and x[1].any()


def test_products_of_a_kernel_are_counted():
  q, k, v = inputs(2, 256, 256, 3, 3, 64)

  def counted(attend):
    return flops.count(jax.make_jaxpr(attend)(q, k, v)).flops

  assert counted(SPLASH) == counted(attention.sdpa) == 4 * 2 * 3 * 256**2 * 64


def test_which_kernel_is_taken():
  of = lambda *size, dtype=BF16: Shape(*size, dtype, False, False)
  worthwhile = attention.worthwhile
  assert worthwhile(of(1357, 1357, 24, 1, 64), 'splash')  # SD3, 512 pixels
  assert worthwhile(of(4096, 77, 8, 1, 40), 'splash')  # SD1.5 at its text
  assert not worthwhile(of(257, 257, 16, 1, 64), 'splash')  # mostly padding
  assert not worthwhile(of(1, 4096, 16, 1, 64), 'splash')  # one new token
  assert worthwhile(of(1357, 1357, 24, 1, 64), 'cudnn')
  assert not worthwhile(of(1357, 1357, 24, 1, 64, dtype=F32), 'cudnn')
  assert not worthwhile(of(4096, 4096, 1, 1, 512), 'cudnn')
  hidden = of(1357, 1357, 24, 1, 64)._replace(hidden=True)
  assert not worthwhile(hidden, 'cudnn')  # odd
  cpu = jax.devices('cpu')[0]
  assert attention.choose(of(1357, 1357, 24, 1, 64), cpu) == 'xla'


def test_a_kernel_that_does_not_compile_is_xla(caplog):
  """As one for TPUs, on a CPU."""
  q, k, v = inputs(1, 128, 128, 2, 2, 8, jnp.bfloat16)
  for _ in range(2):
    got = attention.sdpa(q, k, v, implementation='splash')
  np.testing.assert_array_equal(got, attention.sdpa(q, k, v))
  said = 'is left to XLA, as splash does not compile here (it is for TPUs)'
  assert caplog.text.count(said) == 1


@pytest.mark.parametrize('topology', ['v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'])
def test_compiled_for_tpus_over_a_mesh(topology):
  """Rows over two chips, heads over two, in a scan that is computed anew."""
  pytest.importorskip('libtpu')
  devices, _ = chips.devices(topology)
  mesh = sharding.make_mesh(data=2, tensor=2, devices=devices[:4])
  layout = sharding.Layout(mesh, ())
  spec = jax.sharding.PartitionSpec(('data', 'fsdp'), None, 'tensor', None)
  sharded = jax.sharding.NamedSharding(mesh, spec)
  q, k, v = (
    jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=sharded)
    for x in inputs(4, 300, 300, 4, 2, 64)
  )

  def total(q, k, v):
    @jax.checkpoint
    def block(q, _):
      return attention.sdpa(q, k, v), None

    out, _ = jax.lax.scan(block, q, length=2)
    return out.astype(jnp.float32).sum()

  with layout.scope():
    compiled = jax.jit(jax.grad(total, (0, 1, 2))).lower(q, k, v).compile()
  moved = hlo.traffic(compiled.as_text())
  assert not moved.network or max(moved.network.values()) == 0
  calls = {kernel.split('_seg')[0]: n for kernel, n in moved.kernels.items()}
  # Forward, and again for the backward pass, which has two kernels.
  assert calls == dict(splash_mha_fwd=4, splash_mha_dq=2, splash_mha_dkv=2)
