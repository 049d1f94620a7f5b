r"""Pathwise objectives: the gradient of the reward through the sampling chain.

The last K network calls of a sample (those of the policy's window, and the
last one) are replayed from the stored state before them,

  (1) x_{i+1} = mean(x_i, v_i) + std z_i,   v_i = net(x_i, t_i, c)

with the stored noise z, and the reward of the replayed sample is raised:

  (2) L = loss(R(decode(x_T), c)),   d L through x_T, v_i and x_i

Replayed values equal the stored ones; only gradients are new. Calls that are
not trained carry none (v_i is held fixed, x_i is not). Of K calls are trained

  fixed     the last `last`: DRaFT-K (arXiv:2309.17400)
  uniform   those from a cut on, uniform over 0 .. K - 1: AlignProp
            (arXiv:2310.03739)
  gaussian  the same, of round(N(mean, std^2)) within 0 .. K - 1: AlignProp's
            released code, which rounds down
  spaced    `last` at equal distances K // last, from a random one on: DRTune
            (arXiv:2405.00760)

AlignProp draws one cut for the batch; here every row draws its own, which
has the same expectation and less variance. Random cuts leave the last `most`
calls or fewer, and only these are computed again. With `detach_inputs` the
network sees x_i without its gradient, which then flows along the sampler
alone (DRTune).

With `early` the chain stops at one of the last `early` calls, drawn for every
row, K counts up to it, and what the reward sees is the estimate

  (3) E[x0 | x_i] = x_i - t_i v_i.

One call before which nothing is trained is ReFL (arXiv:2304.05977), early=10
of 40 steps as published; its second loss, on pictures of pretraining, is
missing here. Several are DRTune.

With `draws` n the sample is made noisy n times as before the last step, which
is taken again, and L is the mean over these and the sample itself: the
low-variance estimator of the last call, DRaFT-LV (arXiv:2309.17400), n = 2 as
published,

  (4) x = (1 - t) x0 + t eps,   d L through v = net(x, t, c) alone.

With `per_reward` no reward drowns the others, whatever its slope: of rewards
R_k of weights w_k, with g_k = dR_k/dx at the sample x, what is followed is

  (5) sum_k w_k g_k / |g_k|,  a row at a time; 0 where g_k is

(R0, arXiv:2503.13070). The loss then says nothing; its metrics do.

Rewards have to be differentiable; nothing else about them changes. Pixel
values are clipped without stopping the gradient (`policy.decode`).
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from gen_rl.build import ConfigError
from gen_rl.fields import Count, Index, NonNegative
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

CUTS = ('fixed', 'uniform', 'gaussian', 'spaced')


def reward_backprop(
  cut: Literal['fixed', 'uniform', 'gaussian', 'spaced'] = 'uniform',
  last: Count = 1,
  mean: float = 0.0,
  std: NonNegative = 1.0,
  most: Index = 0,
  loss: Literal['negative', 'l1_target', 'relu_margin'] = 'negative',
  target: float = 1.0,
  detach_inputs: bool = False,
  early: Index = 0,
  draws: Index = 0,
  per_reward: bool = False,
  group_size: int = 1,
  reward_weights: Mapping[str, float] | None = None,
) -> Objective:
  """Truncated reward backpropagation, equations (2) to (5).

  Args:
    cut: which calls carry gradients, see above.
    last: trained calls of a 'fixed' or 'spaced' cut.
    mean: of a 'gaussian' cut, in calls from the start of the window.
    std: its deviation.
    most: trained calls of a 'uniform' or 'gaussian' cut; 0: all.
    loss: 'negative' is -R, 'l1_target' |R - target| (AlignProp), 'relu_margin'
      max(target - R, 0) (ReFL, arXiv:2304.05977), which stops at the target.
    target: in units of the reward.
    detach_inputs: no gradient through the network's input.
    early: last calls of which one ends a row's chain; 0: none ends before.
    draws: n of (4), with cut='fixed', last=1 and early=0.
    per_reward: (5), with loss='negative'; not measured yet.
    group_size: samples of a prompt, which stay together in minibatches: a
      reward may read a prompt once for its group, or compare its rows.
    reward_weights: {label: w_k}, those of the config's rewards.

  Returns:
    Objective with value and mask [b 1]; metrics `reward` of the replayed
    samples, `trained_calls` and, of each reward with `per_reward`,
    `slope/LABEL`, |g_k|.

  Raises:
    ValueError: an unknown cut or loss.
    ConfigError: `per_reward` with another loss, `draws` with other calls than
      the last, or, when called, more `early` calls than there are.
  """
  del group_size
  losses = {
    'negative': lambda r: -r,
    'l1_target': lambda r: jnp.abs(r - target),
    'relu_margin': lambda r: jax.nn.relu(target - r),
  }
  if cut not in CUTS or loss not in losses:
    raise ValueError(
      f'reward_backprop: cut={cut!r} is one of {", ".join(CUTS)}, and '
      f'loss={loss!r} one of {", ".join(losses)}'
    )
  if per_reward and loss != 'negative':
    raise ConfigError(
      f'per_reward=True follows directions, and loss={loss!r} has a value to '
      "stop at; set loss='negative'"
    )
  if draws and (early or (cut, last) != ('fixed', 1)):
    raise ConfigError(
      f'draws={draws} takes the last call again, and cut={cut!r}, last={last}, '
      f"early={early} train others; set cut='fixed', last=1 and early=0"
    )

  plan = _Plan(cut, last, mean, std, most, detach_inputs, early, draws)

  def objective(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    calls = exp.traj.mask.shape[1] + 1
    seen, live = _seen(plan, replay, calls, keys.own)
    values, rewards, slopes = [], [], []
    for sample in seen:
      slope = {}
      if per_reward:
        followed, out, slope = _directions(
          lambda x: replay.score(x, keys.own), sample, reward_weights or {}
        )
        value = -_dot(followed, sample)
      else:
        out = replay.score(sample, keys.own)
        value = losses[loss](out.score)[:, None]
      values.append(value)
      rewards.append(out.score[:, None])
      slopes.append({f'slope/{label}': x for label, x in slope.items()})
    mean_of = lambda xs: jax.tree.map(lambda *x: sum(x) / len(seen), *xs)
    value = mean_of(values)
    # Rows that a rollout could not score do not count. The mask must not depend
    # on the replay: the totals of masks would then cost one more.
    mask = jnp.ones_like(value)
    metrics = dict(
      reward=mean_of(rewards),
      trained_calls=live.sum(1, keepdims=True).astype(jnp.float32),
      **mean_of(slopes),
    )
    return Term(value, mask, every_row=True), jax.lax.stop_gradient(metrics)

  return objective


class _Plan(NamedTuple):
  """Which calls are trained; see `reward_backprop`."""

  cut: Literal['fixed', 'uniform', 'gaussian', 'spaced']
  last: int
  mean: float
  std: float
  most: int
  detach_inputs: bool
  early: int
  draws: int


def _seen(
  plan: _Plan, replay: Replay, calls: int, keys: Array
) -> tuple[list[Array], Array]:
  """(what rewards see, each [b ...]; [b k+1] the calls that are trained)."""
  early, last = plan.early, plan.last
  if early > calls:
    raise ConfigError(
      f'early={early} calls may be the last one, and the policy has {calls}: '
      f'those of its window and one more; set policy.window={early - 1} and '
      'policy.window_low to go with it'
    )
  counts, stop = jnp.full(len(keys), calls), None
  if early:
    draw = lambda key: jax.random.randint(key, (), calls - early, calls)
    stop = jax.vmap(draw)(rng.stream_keys(keys, 'stop'))
    counts = stop + 1
  live = jax.vmap(lambda key, count: _trained(plan, key, count, calls))(
    rng.stream_keys(keys, 'cut'), counts
  )
  if early and (plan.cut, last) == ('fixed', 1):
    return [replay.ask('params', 'estimate', stop)], live
  first = 0  # no call before is trained
  if plan.cut == 'fixed':
    first = max(calls - last - max(early - 1, 0), 0)
  elif plan.most:
    first = max(calls - max(plan.most, early), 0)
  sample = replay.ask('params', 'finish', live, plan.detach_inputs, stop, first)
  if not plan.draws:
    return [sample], live
  again_keys = rng.stream_keys(keys, 'last step')
  again = replay.ask('params', 'last_step', again_keys, plan.draws)
  return [sample, *again.swapaxes(0, 1)], live


def _trained(plan: _Plan, key: Array, count: Array, calls: int) -> Array:
  """Bool [calls] of a row whose chain ends after `count` of them."""
  place = jnp.arange(calls)
  if plan.cut == 'spaced':
    apart = jnp.maximum(count // plan.last, 1)
    most = jnp.maximum(count - (plan.last - 1) * apart, 1)
    start = jax.random.randint(key, (), 0, most)
    n, rest = jnp.divmod(place - start, apart)
    return (rest == 0) & (n >= 0) & (n < plan.last) & (place < count)
  low = max(calls - plan.most, 0) if plan.most else 0
  if plan.cut == 'fixed':
    first = count - plan.last
  elif plan.cut == 'uniform':
    first = jax.random.randint(key, (), jnp.minimum(low, count - 1), count)
  else:
    drawn = plan.mean + plan.std * jax.random.normal(key)
    first = jnp.clip(jnp.round(drawn), low, count - 1)
  return (place >= first) & (place < count)


def _directions(
  score: Callable[[Array], RewardOut],
  sample: Array,
  weights: Mapping[str, float],
) -> tuple[Array, RewardOut, dict[str, Array]]:
  """((5) at the sample, its scores, {label: |g_k| [b 1]}), all held fixed."""

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
