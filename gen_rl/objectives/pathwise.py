r"""Pathwise objectives: the gradient of the reward through the sampling chain.

The last K network calls of a sample (those of the policy's window, and the
last one) are replayed from the stored state before them,

  (1) x_{i+1} = mean(x_i, v_i) + std z_i,   v_i = net(x_i, t_i, c)

with the stored noise z, and the reward of the replayed sample is raised:

  (2) L = loss(R(decode(x_T), c)),   d L through x_T, v_i and x_i

Replayed values equal the stored ones; only gradients are new. Calls before a
cut k carry none (v_i is held fixed, x_i is not): for every row k is

  fixed     K - last, so that the last `last` calls are trained: DRaFT-K
            (arXiv:2309.17400)
  uniform   uniform over 0 .. K - 1: AlignProp (arXiv:2310.03739)
  gaussian  round(N(mean, std^2)) within 0 .. K - 1: AlignProp's released code

AlignProp draws one cut for the batch; here every row draws its own, which
has the same expectation and less variance. With `detach_inputs` the
network sees x_i without its gradient, which then flows along the sampler
alone (DRTune).

Rewards have to be differentiable; nothing else about them changes. Pixel
values are clipped without stopping the gradient (`policy.decode`).
"""

from typing import Literal

import jax
import jax.numpy as jnp

from gen_rl.fields import Count, NonNegative
from gen_rl.types import (
  Array,
  Experience,
  Metrics,
  Objective,
  Replay,
  RowKeys,
  Term,
)
from gen_rl.utils import rng


def reward_backprop(
  cut: Literal['fixed', 'uniform', 'gaussian'] = 'uniform',
  last: Count = 1,
  mean: float = 0.0,
  std: NonNegative = 1.0,
  loss: Literal['negative', 'l1_target', 'relu_margin'] = 'negative',
  target: float = 1.0,
  detach_inputs: bool = False,
  group_size: int = 1,
) -> Objective:
  """Truncated reward backpropagation, equation (2).

  Args:
    cut: which calls carry gradients, see above.
    last: trained calls of a 'fixed' cut.
    mean: of a 'gaussian' cut, in calls from the start of the window.
    std: its deviation.
    loss: 'negative' is -R, 'l1_target' |R - target| (AlignProp), 'relu_margin'
      max(target - R, 0) (ReFL, arXiv:2304.05977), which stops at the target.
    target: in units of the reward.
    detach_inputs: no gradient through the network's input.
    group_size: samples of a prompt, which stay together in minibatches: a
      reward may read a prompt once for its group, or compare its rows.

  Returns:
    Objective with value and mask [b 1]; metrics `reward` of the replayed
    samples and `trained_calls`.

  Raises:
    ValueError: an unknown cut or loss.
  """
  del group_size
  losses = {
    'negative': lambda r: -r,
    'l1_target': lambda r: jnp.abs(r - target),
    'relu_margin': lambda r: jax.nn.relu(target - r),
  }
  if cut not in ('fixed', 'uniform', 'gaussian') or loss not in losses:
    raise ValueError(
      f'reward_backprop: cut={cut!r} is one of fixed, uniform, gaussian, and '
      f'loss={loss!r} one of {", ".join(losses)}'
    )

  def draw(key: Array, calls: int) -> Array:
    if cut == 'fixed':
      return jnp.asarray(max(calls - last, 0))
    if cut == 'uniform':
      return jax.random.randint(key, (), 0, calls)
    drawn = jnp.round(mean + std * jax.random.normal(key))
    return jnp.clip(drawn, 0, calls - 1).astype(jnp.int32)

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    calls = exp.traj.mask.shape[1] + 1
    cut_keys = rng.stream_keys(keys.own, 'cut')
    first = jax.vmap(lambda key: draw(key, calls))(cut_keys)
    sample = replay.ask('params', 'finish', first, detach_inputs)
    out = replay.score(sample, keys.own)
    value = losses[loss](out.score)[:, None]
    # Rows that a rollout could not score do not count. The mask must not depend
    # on the replay: the totals of masks would then cost one more.
    mask = jnp.ones_like(value)
    metrics = dict(
      reward=out.score[:, None],
      trained_calls=(calls - first).astype(jnp.float32)[:, None],
    )
    return Term(value, mask, every_row=True), jax.lax.stop_gradient(metrics)

  return objective
