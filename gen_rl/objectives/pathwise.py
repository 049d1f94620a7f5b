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

With `per_reward` no reward drowns the others, whatever its slope: of rewards
R_k of weights w_k, with g_k = dR_k/dx at the sample x, what is followed is

  (3) sum_k w_k g_k / |g_k|,  a row at a time; 0 where g_k is

(R0, arXiv:2503.13070). The loss then says nothing; its metrics do.

Rewards have to be differentiable; nothing else about them changes. Pixel
values are clipped without stopping the gradient (`policy.decode`).
"""

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from gen_rl.build import ConfigError
from gen_rl.fields import Count, NonNegative
from gen_rl.types import (
  Array,
  Experience,
  Metrics,
  Objective,
  Replay,
  RewardOut,
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
  per_reward: bool = False,
  group_size: int = 1,
  reward_weights: Mapping[str, float] | None = None,
) -> Objective:
  """Truncated reward backpropagation, equation (2) or (3).

  Args:
    cut: which calls carry gradients, see above.
    last: trained calls of a 'fixed' cut.
    mean: of a 'gaussian' cut, in calls from the start of the window.
    std: its deviation.
    loss: 'negative' is -R, 'l1_target' |R - target| (AlignProp), 'relu_margin'
      max(target - R, 0) (ReFL, arXiv:2304.05977), which stops at the target.
    target: in units of the reward.
    detach_inputs: no gradient through the network's input.
    per_reward: (3), with loss='negative'; not measured yet.
    group_size: samples of a prompt, which stay together in minibatches: a
      reward may read a prompt once for its group, or compare its rows.
    reward_weights: {label: w_k}, those of the config's rewards.

  Returns:
    Objective with value and mask [b 1]; metrics `reward` of the replayed
    samples, `trained_calls` and, of each reward with `per_reward`,
    `slope/LABEL`, |g_k|.

  Raises:
    ValueError: an unknown cut or loss.
    ConfigError: `per_reward` with another loss.
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

  if per_reward and loss != 'negative':
    raise ConfigError(
      f'per_reward=True follows directions, and loss={loss!r} has a value to '
      "stop at; set loss='negative'"
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
    slopes = {}
    if per_reward:
      followed, out, slopes = _directions(
        lambda x: replay.score(x, keys.own), sample, reward_weights or {}
      )
      value = -_dot(followed, sample)
    else:
      out = replay.score(sample, keys.own)
      value = losses[loss](out.score)[:, None]
    # Rows that a rollout could not score do not count. The mask must not depend
    # on the replay: the totals of masks would then cost one more.
    mask = jnp.ones_like(value)
    metrics = dict(
      reward=out.score[:, None],
      trained_calls=(calls - first).astype(jnp.float32)[:, None],
      **{f'slope/{label}': x for label, x in slopes.items()},
    )
    return Term(value, mask, every_row=True), jax.lax.stop_gradient(metrics)

  return objective


def _directions(
  score: Callable[[Array], RewardOut],
  sample: Array,
  weights: Mapping[str, float],
) -> tuple[Array, RewardOut, dict[str, Array]]:
  """((3) at the sample, its scores, {label: |g_k| [b 1]}), all held fixed."""

  def each(x: Array) -> tuple[dict[str, Array], RewardOut]:
    out = score(x)
    return {label: out.parts[label] for label in weights}, out

  parts, back, out = jax.vjp(each, jax.lax.stop_gradient(sample), has_aux=True)
  followed, slopes = jnp.zeros_like(sample), {}
  for label, weight in weights.items():
    ones = {k: jnp.full_like(x, k == label) for k, x in parts.items()}
    (g,) = back(ones)
    length = jnp.sqrt(_dot(g, g))
    whole = length.reshape(-1, *[1] * (g.ndim - 1))
    some = jnp.isfinite(whole) & (whole > 0)
    unit = jnp.where(some, g, 0.0) / jnp.where(some, whole, 1.0)
    followed, slopes[label] = followed + weight * unit, length
  return jax.lax.stop_gradient((followed, out, slopes))


def _dot(a: Array, b: Array) -> Array:
  """Of each row, [b 1]."""
  return (a * b).reshape(len(a), -1).sum(-1, keepdims=True)
