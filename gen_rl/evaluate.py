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
  invalid    how many samples a reward could not score

A sample without a verdict is not right: `strict` and monitors that give
verdicts count it as wrong. Scores are means of what could be scored, NaN where
nothing could. A sample that is not finite is scored by nothing.
"""

import collections
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl import chunks, distributions, mixers, sharding
from gen_rl import rollout as rollout_lib
from gen_rl.build import ConfigError
from gen_rl.evaluation import Evaluation
from gen_rl.rewards import combine, outcomes
from gen_rl.rewards import evaluate as reward_calls
from gen_rl.rewards import inputs as inputs_lib
from gen_rl.rewards import spread as spread_lib
from gen_rl.types import (
  Array,
  Params,
  Policy,
  PyTree,
  RewardOut,
  Rows,
)
from gen_rl.utils import rng
from gen_rl.worlds import world


def diversity(media: Array, samples: int) -> Array:
  """Mean distance of two samples of a prompt: [P*n ...] -> [P].

  The distance of two pictures is the root mean square of their pixel
  differences, in units of the pixel range; that of two token sequences is 1
  unless they are equal. Samples that are not finite are left out: NaN where
  fewer than two of several are left. Of a single one it is 0.
  """
  x = media.reshape(media.shape[0] // samples, samples, -1)
  if jnp.issubdtype(media.dtype, jnp.integer):
    square = (x[:, :, None] != x[:, None]).any(-1).astype(jnp.float32)
  else:
    square = jnp.mean(jnp.square(x[:, :, None] - x[:, None]), -1)
  whole = finite(media).reshape(x.shape[:2])
  both = whole[:, :, None] & whole[:, None]
  distance = jnp.sqrt(jnp.where(both, square, 0.0)).sum((1, 2))
  count = whole.sum(1)
  pairs = count * (count - 1)
  return distance / (pairs if samples > 1 else 1)


def finite(media: PyTree) -> Array:
  """[b] bool: all numbers of a sample are finite."""
  rows = [
    jnp.isfinite(x).reshape(x.shape[0], -1).all(1)
    for x in jax.tree.leaves(media)
  ]
  return jnp.stack(rows).all(0)


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
  asked: Mapping[str, Any] | None = None,
  monitors: combine.Weighted | None = None,
  view: Callable[[Rows], tuple[PyTree, PyTree]] | None = None,
  speak: Callable[[np.ndarray], list[str]] | None = None,
  layout: sharding.Layout | None = None,
  chunk: int = 0,
  mix: mixers.Mixer | None = None,
) -> chunks.Evaluator:
  """An evaluation of parameters on fixed prompts and noise.

  Args:
    policy: for decoding.
    sampler: (params, rows) -> latents.
    batch: the P prompts, as the pipeline yields them.
    texts: their sentences.
    tasks: their task labels, or empty.
    gold: {label: (Reward, weight)}, which training need not have seen; empty:
      nothing judges the samples.
    proxy: {label: (Reward, weight)} as trained on, or None.
    samples: n per prompt.
    seed: of the initial noise.
    host_rewards: keywords of `rewards.spread.asker`.
    asked: what rewards on the host read of the rows, see `Prompts.asked`.
    monitors: {label: (Reward, weight)} whose means are logged.
    view: what the policy is shown, see `rollout.make_rows`.
    speak: token ids [b k] -> b texts, for policies of tokens.
    layout: splits the samples; None: all on one device.
    chunk: samples drawn and scored at a time, see `chunks.places`.
    mix: how the scores of `proxy` become one, see `combine.merge`; their
      weights do not move here.

  Returns:
    params -> Evaluation.
  """
  used = dict(gold=gold, proxy=proxy or {}, monitor=dict(monitors or {}))
  scored, on_host = {}, {}
  for kind, named in used.items():
    scored[kind], on_host[kind] = combine.split(named)
  called = {(kind, k): r for kind in on_host for k, r in on_host[kind].items()}
  weights = combine.weights(used['proxy'])
  verdict = bool(gold) and combine.combine(gold).verdict
  _check_uncut(scored, batch, samples, chunk, layout)

  @jax.jit
  def run(params: Params, reward_params, prompts):
    rows = rollout_lib.make_rows(
      prompts, samples, jax.random.key(seed), jnp.zeros((), jnp.int32), view
    )
    rows = layout.rows(rows) if layout else rows
    latents = sampler(params, rows)
    media = policy.decode(params, latents)
    inputs = inputs_lib.of(rows, media, samples, said=latents)
    keys = rng.stream_keys(rows.keys, 'reward')
    whole = finite(media)
    outs = {
      kind: reward_calls.evaluate(named, inputs, keys, reward_params[kind])
      for kind, named in scored.items()
    }
    kept = inputs_lib.needed(inputs, called)
    seen = None if view is None else rows.media
    return kept, seen, outs, whole, diversity(inputs.image, samples)

  reward_params = {k: combine.params(named) for k, named in scored.items()}
  places = _places(scored, layout)

  def trace(params: Params):
    """With the rewards' parameters as they are placed."""
    shapes = reward_params
    if places:
      shapes = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        reward_params,
        places,
      )
    return chunked.trace(params, shapes)

  def call(params: Params) -> Evaluation:
    judges = sharding.put(reward_params, places) if places else reward_params
    return summed(chunked.call(params, judges))

  def summed(found) -> Evaluation:
    inputs, seen, outs, whole, spread = found
    media, text = inputs.image, inputs.text
    for kind, named in on_host.items():
      if named:
        answers = spread_lib.asker(
          named, inputs, jax.random.key(seed), asked or {},
          **(host_rewards or {}),
        )  # fmt: skip
        outs[kind] |= spread_lib.gathered([answers])
    outs = {
      kind: {k: x.replace(valid=x.valid & whole) for k, x in named.items()}
      for kind, named in outs.items()
    }
    if gold:
      out = jax.device_get(combine.merge(outs['gold'], combine.weights(gold)))
      about = combine.applies(outs['gold'])
    else:
      nobody, about = np.zeros(len(whole), bool), True
      out = RewardOut(np.zeros(len(whole), np.float32), {}, nobody)
    result = _evaluation(
      media, out, about, verdict, spread, texts, tasks if gold else ()
    )
    result = result._replace(judged=bool(gold))
    invalid = dict(result.invalid) if gold else {}
    means = {}
    for label, (monitor, _) in used['monitor'].items():
      seen_by = outs['monitor'][label]
      means[label] = _mean(*_for(seen_by, seen_by.score), monitor.verdict)
      invalid[f'monitor/{label}'] = int((~seen_by.valid).sum())
    if weights:
      trained = jax.device_get(
        combine.merge(outs['proxy'], weights, mix, samples)
      )
      reward = np.where(trained.valid, trained.score, np.nan)
      invalid['proxy'] = int(
        (~trained.valid & combine.applies(outs['proxy'])).sum()
      )
      result = result._replace(
        reward=reward.reshape(result.gold.shape),
        proxy=_mean(trained.score, trained.valid),
      )
    names = _part_names(out.parts, gold, means)
    parts = _part_means(gold, outs['gold'], names, len(whole))
    result = result._replace(parts=parts, monitors=means, invalid=invalid)
    if seen is not None:
      shape = result.gold.shape
      result = result._replace(seen=seen.reshape(*shape, *seen.shape[1:]))
    if speak and np.issubdtype(text.dtype, np.integer):
      result = result._replace(said=speak(text))
    return result

  chunked = chunks.evaluator(run, batch, samples, chunk, layout)
  return chunks.Evaluator(call, trace)


def _places(
  scored: Mapping[str, combine.Weighted], layout: sharding.Layout | None
) -> dict[str, Any] | None:
  """{kind: {label: shardings of a judge's parameters}}; None: one device."""
  if not layout or layout.mesh.size == 1:
    return None
  return {
    kind: {
      label: layout.judge(reward.params, reward.axes)
      for label, (reward, weight) in named.items()
      if weight
    }
    for kind, named in scored.items()
  }


def _part_means(
  gold: combine.Weighted,
  outs: Mapping[str, RewardOut],
  names: Mapping[str, str],
  rows: int,
) -> dict[str, float]:
  """{what a part is called: its mean over the rows it is for}."""
  parts = {}
  for label in combine.weights(gold):
    one = outcomes.checked(label, outs[label], rows)
    for name, part in one.parts.items():
      parts[names[f'{label}/{name}']] = _mean(*_for(one, part))
  return parts


def _for(out: RewardOut, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Values [b] and whether they are valid, of the rows a reward is for."""
  applies = slice(None) if out.applies is None else np.asarray(out.applies)
  return np.asarray(x)[applies], np.asarray(out.valid)[applies]


def _part_names(
  parts: Iterable[str], labels: Container[str], monitors: Iterable[str]
) -> dict[str, str]:
  """{label/part: what it is called}: the part, where nothing else is so called.

  Args:
    parts: of the gold rewards, and their labels.
    labels: of the gold rewards, which are no parts.
    monitors: labels of the monitors, beside which parts are reported.
  """
  short = {p: p.rpartition('/')[2] for p in parts if p not in labels}
  count = collections.Counter([*short.values(), *monitors])
  return {p: name if count[name] == 1 else p for p, name in short.items()}


def labelled(
  policy: Policy,
  encode: Callable[[Rows], tuple[PyTree, PyTree]] | None,
  batch: Mapping[str, Any],
  texts: Sequence[str],
  tasks: Sequence[str],
  samples: int,
  seed: int,
  layout: sharding.Layout | None = None,
  chunk: int = 0,
) -> chunks.Evaluator:
  """How often a policy's labels of fixed data are right.

  Args:
    policy: for `correct` and decoding.
    encode: a function of `data.pictures`: rows -> (data, cond with labels).
    batch: the P prompts, as the pipeline yields them.
    texts: their sentences.
    tasks: their task labels, or empty.
    samples: n pictures per prompt.
    seed: of the pictures.
    layout: as the next one, see `sampled`.
    chunk: see `sampled`.

  Raises:
    ConfigError: the policy predicts no labels, or there is no data.
  """
  if 'correct' not in policy.ops or encode is None:
    raise ConfigError(
      'eval.name="labelled" goes with a policy that predicts labels and a '
      'rollout of data that has them; use eval.name="sampled"'
    )

  @jax.jit
  def run(params: Params, prompts):
    rows = rollout_lib.make_rows(
      prompts, samples, jax.random.key(seed), jnp.zeros((), jnp.int32)
    )
    data, cond = encode(layout.rows(rows) if layout else rows)
    media = policy.decode(params, data)
    traj = rollout_lib.given(data, cond, rows.group)
    correct = policy.ops['correct'](params, traj).astype(jnp.float32)
    return media, correct, diversity(media, samples)

  def summed(found) -> Evaluation:
    media, correct, spread = found
    out = RewardOut(correct, {}, np.ones(correct.shape, bool))
    return _evaluation(media, out, True, True, spread, texts, tasks)

  chunked = chunks.evaluator(run, batch, samples, chunk, layout)
  return chunks.Evaluator(
    lambda params: summed(chunked.call(params)), chunked.trace
  )


def _mean(score: np.ndarray, valid: np.ndarray, verdict: bool = False) -> float:
  """Mean of what is valid; of verdicts, all others are wrong. NaN: of none."""
  count = valid.size if verdict else valid.sum()
  total = np.where(valid, score, 0).sum(dtype=np.float64)
  return float(total / count) if count else float('nan')


def _check_uncut(scored, batch, samples, chunk, layout) -> None:
  """Raises ConfigError for rewards that compare rows of several chunks."""
  count = len(batch['prompt_id'])
  at = chunks.places(count, samples, chunk, layout.row_shards if layout else 1)
  for kind, named in scored.items():
    for label, (reward, _) in named.items():
      if reward.called_on == 'batch' and (len(at) > 1 or at.size > count):
        raise ConfigError(
          f'the reward {label!r} ({kind}) compares the rows of a whole batch, '
          f'and the {count * samples} samples of an evaluation are scored in '
          f'{len(at)} x {at.shape[1] * samples}; eval.num_prompts * '
          'eval.samples has to be a multiple of the devices and at most '
          f'{chunk}, the samples of a step that are drawn at a time'
        )


def _evaluation(media, out, about, verdict, spread, texts, tasks) -> Evaluation:
  """Sums up numpy arrays: media [P*n ...], the gold reward's answer [P*n].

  What gold is not about ([P*n] or True, all) is not right, wrong or invalid.
  """
  score = out.score.reshape(len(texts), -1)
  valid = out.valid.reshape(score.shape)
  about = np.broadcast_to(about, out.valid.shape).reshape(score.shape)
  per_task = {}
  for task in world.ordered(tasks):
    at = np.array([t == task for t in tasks])[:, None] & about
    if at.any():
      per_task[task] = _mean(score[at], valid[at], verdict)
  return Evaluation(
    strict=_mean(score[about], valid[about], verdict),
    strict_per_task=per_task,
    parts={},
    proxy=None,
    diversity=_mean(spread, np.isfinite(spread)),
    media=media.reshape(*score.shape, *media.shape[1:]),
    gold=np.where(valid, score, np.nan),
    texts=list(texts),
    verdict=verdict,
    invalid=dict(gold=int((~valid & about).sum())),
    about=about,
  )


def kl_from_base(
  policy: Policy,
  batch: Mapping[str, Any],
  samples: int,
  seed: int,
  view: Callable[[Rows], tuple[PyTree, PyTree]] | None = None,
  layout: sharding.Layout | None = None,
  chunk: int = 0,
) -> chunks.Evaluator:
  """Mean KL(policy || base) of a sample, in nats; needs decisions to compare.

  Both see the states the first one visits. The event's dimensions are summed
  here whatever the policy's log-prob does. Samples of which it is no number
  are left out; NaN where it is of none.

  Returns:
    (params, base) -> a float.
  """

  @jax.jit
  def run(params: Params, base: Params, prompts) -> Array:
    rows = rollout_lib.make_rows(
      prompts, samples, jax.random.key(seed), jnp.zeros((), jnp.int32), view
    )
    rows = layout.rows(rows) if layout else rows
    traj = policy.rollout(params, rows, jnp.zeros((), jnp.int32))
    p, q = (policy.ops['dist'](copy, traj) for copy in (params, base))
    p, q = distributions.joint(p), distributions.joint(q)
    return jnp.where(traj.mask > 0, p.kl(q), 0.0).sum(-1)

  def mean(kl: np.ndarray) -> float:
    return _mean(kl, ~np.isnan(kl))

  chunked = chunks.evaluator(run, batch, samples, chunk, layout)
  return chunks.Evaluator(
    lambda params, base: mean(chunked.call(params, base)), chunked.trace
  )
