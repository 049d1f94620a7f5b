"""Evaluation on fixed prompts with fixed keys: the same noise every time.

A config names how: `sampled` for policies that sample, `labelled` for those
that label data. Samples are deterministic (ODE) given their initial noise, so
two sets of parameters are compared on the same seeds, picture by picture.

  strict     mean of the gold reward, which training need not have seen: the
             share of correct samples where that gives verdicts, a mean score
             where it does not; of labels, the share of rows whose labels are
             all right
  proxy      mean of the trained reward on the same samples
  diversity  mean root-mean-square pixel distance of two samples of a prompt
  kl         nats per sample between a policy and its base, summed over the
             decisions of the policy's own stochastic rollouts
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl import rollout as rollout_lib
from gen_rl import sharding
from gen_rl.build import ConfigError
from gen_rl.rewards import combine
from gen_rl.rewards import evaluate as reward_calls
from gen_rl.types import Array, Params, Policy, PyTree, RewardInputs, Rows
from gen_rl.utils import hosts, image, rng


class Evaluation(NamedTuple):
  """Numpy arrays; P prompts, n samples of each."""

  strict: float
  strict_per_task: dict[str, float]
  parts: dict[str, float]  # means of what else the gold reward says
  proxy: float | None
  diversity: float
  media: np.ndarray  # [P n h w c], or points [P n 2]
  gold: np.ndarray  # [P n]
  texts: list[str]  # [P]
  monitors: dict[str, float] = {}  # means of their scores
  reward: np.ndarray | None = None  # [P n], as trained on; NaN: not valid
  said: list[str] = []  # [P*n] where media are tokens
  seen: np.ndarray | None = None  # [P n h w c] pictures they are about
  verdict: bool = True  # gold is 1 for correct and 0 for wrong, not a score

  def metrics(self) -> dict[str, float]:
    """Scalars for the log."""
    out = {'eval/strict': self.strict, 'eval/diversity': self.diversity}
    if self.proxy is not None:
      out['eval/proxy'] = self.proxy
    per_task = self.strict_per_task.items()
    out |= {f'eval/strict/{task}': value for task, value in per_task}
    monitors = self.monitors.items()
    out |= {f'eval/monitor/{label}': value for label, value in monitors}
    parts = self.parts.items()
    return out | {f'eval/gold/{part}': value for part, value in parts}

  def shown(self, prompts: int) -> 'Shown':
    """Of the first prompts; points are drawn into one picture a prompt."""
    media, gold = self.media[:prompts], self.gold[:prompts]
    reward = gold if self.reward is None else self.reward[:prompts]
    if self.said:
      n = media.shape[1]
      blank = np.ones((*media.shape[:2], 24, 24, 3), np.float32)
      seen = blank if self.seen is None else self.seen[:prompts]
      media = np.stack(
        [
          [
            image.captioned(picture, self.said[i * n + j])
            for j, picture in enumerate(row)
          ]
          for i, row in enumerate(seen)
        ]
      )
    elif media.ndim < 4:
      media = np.stack([image.scatter(points) for points in media])[:, None]
      gold, reward = (
        gold.mean(-1, keepdims=True),
        reward.mean(-1, keepdims=True),
      )
    correct = np.where(np.isfinite(gold), gold > 0.5, None)
    return Shown(media, gold, reward, correct if self.verdict else None)

  def summary(self) -> dict[str, Any]:
    """The part of result.json about one policy."""
    return dict(
      gold='accuracy' if self.verdict else 'score',
      strict=self.strict,
      strict_per_task=self.strict_per_task,
      parts=self.parts | self.monitors,
      proxy=self.proxy,
      diversity=self.diversity,
    )


class Shown(NamedTuple):
  """Pictures of p prompts, m of each, and their scores."""

  pictures: np.ndarray  # [p m h w c]
  gold: np.ndarray  # [p m]; of points their mean, as of the reward
  reward: np.ndarray  # [p m], as trained on; gold where nothing is
  # [p m] True, False or None: not judged; None where gold gives no verdicts.
  correct: np.ndarray | None


def diversity(media: Array, samples: int) -> Array:
  """Mean distance of two samples of a prompt: [P*n ...] -> [P].

  The distance of two pictures is the root mean square of their pixel
  differences, in units of the pixel range; that of two token sequences is 1
  unless they are equal.
  """
  x = media.reshape(media.shape[0] // samples, samples, -1)
  if jnp.issubdtype(media.dtype, jnp.integer):
    square = (x[:, :, None] != x[:, None]).any(-1).astype(jnp.float32)
  else:
    square = jnp.mean(jnp.square(x[:, :, None] - x[:, None]), -1)
  pairs = samples * (samples - 1)
  return jnp.sqrt(square).sum((1, 2)) / max(pairs, 1)


def sampled(
  policy: Policy,
  sampler: Callable[[Params, Rows], Array],
  batch: Mapping[str, Any],
  texts: Sequence[str],
  tasks: Sequence[str],
  gold: combine.Weighted,
  proxy: combine.Weighted | None,
  samples: int,
  seed: int,
  host_rewards: Mapping[str, Any] | None = None,
  monitors: combine.Weighted | None = None,
  view: Callable[[Rows], tuple[PyTree, PyTree]] | None = None,
  speak: Callable[[np.ndarray], list[str]] | None = None,
  layout: sharding.Layout | None = None,
) -> Callable[[Params], Evaluation]:
  """An evaluation of parameters on fixed prompts and noise.

  Args:
    policy: for decoding.
    sampler: (params, rows) -> latents.
    batch: the P prompts, as the pipeline yields them.
    texts: their sentences.
    tasks: their task labels, or empty.
    gold: {label: (Reward, weight)}, which training need not have seen.
    proxy: {label: (Reward, weight)} as trained on, or None.
    samples: n per prompt.
    seed: of the initial noise.
    host_rewards: keywords of `rewards.evaluate.evaluate_host`.
    monitors: {label: (Reward, weight)} on the device whose means are logged.
    view: what the policy is shown, see `rollout.make_rows`.
    speak: token ids [b k] -> b texts, for policies of tokens.
    layout: splits the samples; None: all on one device.
  """
  gold_reward = combine.combine(gold)
  device, host = combine.split(proxy or {})
  weights = combine.weights({**device, **host})
  monitors = dict(monitors or {})
  scored = device | monitors

  @jax.jit
  def run(params: Params, prompts, gold_params, device_params):
    rows = rollout_lib.make_rows(
      prompts, samples, jax.random.key(seed), jnp.zeros((), jnp.int32), view
    )
    rows = _split(rows, layout)
    media = policy.decode(params, sampler(params, rows))
    inputs = RewardInputs(media, rows.info, samples)
    keys = rng.stream_keys(rows.keys, 'reward')
    verdict = gold_reward.score(gold_params, inputs, keys)
    outs = reward_calls.evaluate(scored, inputs, keys, device_params)
    seen = None if view is None else rows.media
    return inputs, seen, verdict, outs, diversity(media, samples)

  def evaluate_params(params: Params) -> Evaluation:
    inputs, seen, verdict, outs, spread = hosts.fetch(
      run(params, dict(batch), gold_reward.params, combine.params(scored))
    )
    watched = {label: outs.pop(label) for label in monitors}
    means = {
      label: float(out.score[out.valid].mean())
      for label, out in watched.items()
    }
    media = inputs.media
    score = np.where(verdict.valid, verdict.score, np.nan)
    if host:
      more, _ = reward_calls.evaluate_host(
        host, inputs, jax.random.key(seed), **(host_rewards or {})
      )
      outs |= more
    reward = mean_proxy = None
    if outs:
      trained = jax.device_get(combine.merge(outs, weights))
      reward = np.where(trained.valid, trained.score, np.nan)
      mean_proxy = float(np.nanmean(reward))
      reward = reward.reshape(len(texts), -1)
    parts = {
      name.rpartition('/')[2]: float(part[verdict.valid].mean())
      for name, part in verdict.parts.items()
      if name not in gold
    }
    result = _evaluation(media, score, mean_proxy, spread, texts, tasks, parts)
    result = result._replace(
      monitors=means, reward=reward, verdict=gold_reward.verdict
    )
    if speak and np.issubdtype(media.dtype, np.integer):
      shape = result.media.shape
      seen = None if seen is None else seen.reshape(*shape[:2], *seen.shape[1:])
      result = result._replace(said=speak(media), seen=seen)
    return result

  return evaluate_params


def labelled(
  policy: Policy,
  encode: Callable[[Rows], tuple[PyTree, PyTree]] | None,
  batch: Mapping[str, Any],
  texts: Sequence[str],
  tasks: Sequence[str],
  samples: int,
  seed: int,
  layout: sharding.Layout | None = None,
) -> Callable[[Params], Evaluation]:
  """How often a policy's labels of fixed data are right.

  Args:
    policy: for `correct` and decoding.
    encode: a function of `data.pictures`: rows -> (data, cond with labels).
    batch: the P prompts, as the pipeline yields them.
    texts: their sentences.
    tasks: their task labels, or empty.
    samples: n pictures per prompt.
    seed: of the pictures.
    layout: see `sampled`.

  Raises:
    ConfigError: the policy predicts no labels, or there is no data.
  """
  if policy.correct is None or encode is None:
    raise ConfigError(
      'eval.name="labelled" goes with a policy that predicts labels and a '
      'rollout of data that has them, such as shapes_scenes; use '
      'eval.name="sampled"'
    )

  @jax.jit
  def run(params: Params, prompts):
    rows = rollout_lib.make_rows(
      prompts, samples, jax.random.key(seed), jnp.zeros((), jnp.int32)
    )
    data, cond = encode(_split(rows, layout))
    media = policy.decode(params, data)
    correct = policy.correct(params, data, cond).astype(jnp.float32)
    return media, correct, diversity(media, samples)

  def evaluate_params(params: Params) -> Evaluation:
    media, correct, spread = hosts.fetch(run(params, dict(batch)))
    return _evaluation(media, correct, None, spread, texts, tasks, {})

  return evaluate_params


def _split(rows: Rows, layout: sharding.Layout | None) -> Rows:
  """Rows over all devices, where their number allows."""
  if layout is None or rows.group.shape[0] % layout.row_shards:
    return rows
  return layout.rows(rows)


def _evaluation(media, score, proxy, spread, texts, tasks, parts) -> Evaluation:
  """Sums up numpy arrays: media [P*n ...], score [P*n] (NaN: not valid)."""
  score = score.reshape(len(texts), -1)
  per_task = {
    task: float(np.nanmean(score[[t == task for t in tasks]]))
    for task in sorted(set(tasks))
  }
  return Evaluation(
    strict=float(np.nanmean(score)),
    strict_per_task=per_task,
    parts=parts,
    proxy=proxy,
    diversity=float(spread.mean()),
    media=media.reshape(*score.shape, *media.shape[1:]),
    gold=score,
    texts=list(texts),
  )


def kl_from_base(
  policy: Policy,
  batch: Mapping[str, Any],
  samples: int,
  seed: int,
  view: Callable[[Rows], tuple[PyTree, PyTree]] | None = None,
  layout: sharding.Layout | None = None,
) -> Callable[[Params, Params], float]:
  """Mean KL(policy || base) of a sample, in nats; needs decisions to compare.

  Both see the states the first one visits. The event's dimensions are summed
  here whatever the policy's log-prob does.
  """

  @jax.jit
  def run(params: Params, base: Params, prompts) -> Array:
    rows = rollout_lib.make_rows(
      prompts, samples, jax.random.key(seed), jnp.zeros((), jnp.int32), view
    )
    rows = _split(rows, layout)
    traj = policy.rollout(params, rows, jnp.zeros((), jnp.int32))
    p, q = policy.dist(params, traj), policy.dist(base, traj)
    if hasattr(p, 'event'):
      p, q = p.replace(event='sum'), q.replace(event='sum')
    return (p.kl(q) * traj.mask).sum(-1).mean()

  return lambda params, base: float(run(params, base, dict(batch)))
