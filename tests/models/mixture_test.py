import jax
import jax.numpy as jnp
import numpy as np

from gen_rl import testing
from gen_rl.data import tokenizers
from gen_rl.models.mixture import mixture_net
from gen_rl.worlds import mixture


def test_untrained_net_is_the_exact_base():
  tokenizer = tokenizers.mixture_words()
  net = mixture_net(vocab=tokenizer.size, length=2)
  params = net.init(jax.random.key(0))
  cond = dict(tokens=tokenizer.encode([*mixture.WORDS, ''], 2))
  x = jax.random.normal(jax.random.key(1), (5, 2))
  t = jnp.linspace(0.0, 1.0, 5)
  np.testing.assert_array_equal(
    net.apply(params, x, t, cond),
    mixture.velocity(mixture.base(jnp.array([0, 1, 2, 3, -1])), x, t),
  )
  assert not net.null(cond)['tokens'].any()


def test_every_prompt_can_be_trained():
  net = testing.jitted(mixture_net(width=8))
  params = net.init(jax.random.key(0))

  def loss(params):
    cond = dict(tokens=jnp.array([[2], [3], [4], [5]]))
    v = net.apply(params, jnp.ones((4, 2)), jnp.full(4, 0.5), cond)
    return jnp.sum(v**2)

  gradient = testing.grad(loss)(params)
  assert jnp.abs(gradient['out']['kernel']).sum() > 0
