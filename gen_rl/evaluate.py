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
  reused     share of the steps that took the velocity of one before, where
             samplers do so (`diffusion.caching`)

A sample without a verdict is not right: `strict` and monitors that give
verdicts count it as wrong. Scores are means of what could be scored, NaN where
nothing could. A sample that is not finite is scored by nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl import chunks, distributions, mixers, sharding, verdicts
from gen_rl import media as media_lib
from gen_rl import rollout as rollout_lib
from gen_rl.build import ConfigError
from gen_rl.evaluation import Evaluation
from gen_rl.measures.measure import Measure
from gen_rl.rewards import combine
from gen_rl.rewards import evaluate as reward_calls
from gen_rl.rewards import inputs as inputs_lib
from gen_rl.types import (
  Array,
  Params,
  Policy,
  PyTree,
  RewardOut,
  Rows,
)
from gen_rl.utils import rng


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
  sampler: Callable[[Params, Rows], Array | tuple[Array, PyTree]],
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
  sets: Mapping[str, Measure] | None = None,
  search: Callable[[Params, Rows, Mapping[str, Params]], Any] | None = None,
  keep: Callable[[Any], Any] | None = None,
) -> chunks.Evaluator:
  """An evaluation of parameters on fixed prompts and noise.

  Args:
    policy: for decoding.
    sampler: (params, rows) -> latents, or (latents, [b] the share of the steps
      that took the velocity of one before).
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
    sets: {label: measure of all samples}.
    search: (params, rows, parameters of `proxy`'s device rewards) ->
      search.Found, in place of `sampler`.
    keep: see `chunks.evaluator`.

  Returns:
    params -> Evaluation.
  """
  used = dict(gold=gold, proxy=proxy or {}, monitor=dict(monitors or {}))
  scored, on_host = {}, {}
  for kind, named in used.items():
    scored[kind], on_host[kind] = combine.split(named)
  called = {(kind, k): r for kind in on_host for k, r in on_host[kind].items()}
  sets = dict(sets or {})
  _check_uncut(scored, batch, samples, chunk, layout)

  @jax.jit
  def run(params: Params, read_with, prompts):
    rows = rollout_lib.make_rows(
      prompts, samples, jax.random.key(seed), jnp.zeros((), jnp.int32), view
    )
    rows = layout.rows(rows) if layout else rows
    latents, reused, calls = _drawn(
      sampler, search, params, rows, read_with['proxy']
    )
    media = policy.decode(params, latents)
    inputs = inputs_lib.of(rows, media, samples, said=latents)
    keys = rng.stream_keys(rows.keys, 'reward')
    whole = finite(media)
    outs = {
      kind: reward_calls.evaluate(named, inputs, keys, read_with[kind])
      for kind, named in scored.items()
    }
    features = {
      label: _features(label, measure, read_with['sets'], rows, inputs.media)
      for label, measure in sets.items()
    }
    return verdicts.Found(
      inputs=inputs_lib.needed(inputs, called),
      seen=None if view is None else rows.media,
      outs=outs,
      whole=whole,
      spread=diversity(inputs.image, samples),
      features=features,
      reused=reused,
      calls=calls,
    )

  judged = verdicts.Judged(
    used, on_host, texts, tasks, samples, seed, dict(host_rewards or {}),
    dict(asked or {}), mix, speak, sets,
  )  # fmt: skip
  readers = {k: combine.params(named) for k, named in scored.items()}
  readers['sets'] = {k: measure.params for k, measure in sets.items()}
  places = _places(scored, sets, layout)

  def trace(params: Params):
    """With the readers' parameters as they are placed."""
    shapes = readers
    if places:
      shapes = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        readers,
        places,
      )
    return chunked.trace(params, shapes)

  def call(params: Params) -> Evaluation:
    placed = sharding.put(readers, places) if places else readers
    return verdicts.summed(judged, chunked.call(params, placed))

  chunked = chunks.evaluator(run, batch, samples, chunk, layout, keep)
  return chunks.Evaluator(call, trace)


def _drawn(
  sampler: Callable[[Params, Rows], Array | tuple[Array, PyTree]],
  search: Callable[[Params, Rows, Mapping[str, Params]], Any] | None,
  params: Params,
  rows: Rows,
  judges: Mapping[str, Params],
) -> tuple[Array, PyTree, Any]:
  """(latents, share of velocities taken or (), calls of a search or None)."""
  if search:
    found = search(params, rows, judges)
    return found.sample, (), found.cost
  drawn = sampler(params, rows)
  latents, reused = drawn if isinstance(drawn, tuple) else (drawn, ())
  return latents, reused, None


def _features(
  label: str,
  measure: Measure,
  params: Mapping[str, Params],
  rows: Rows,
  media: PyTree,
) -> tuple[Array, Array]:
  """Of the samples and of the real pictures, [b d] each.

  Raises:
    ConfigError: there are no pictures of one of the two.
  """
  media = media_lib.image(media)
  if media.ndim != 4 or not jnp.issubdtype(media.dtype, jnp.floating):
    raise ConfigError(
      f'eval.sets.{label} reads pictures, and the samples are '
      f'{media.dtype}{list(media.shape)}'
    )
  try:
    real = rollout_lib.media_of(measure.real(rows)[0], media)
  except ConfigError as error:
    raise ConfigError(f'eval.sets.{label}: {error}') from None
  ours = jnp.where(finite(media)[:, None, None, None], media, 0.0)
  return tuple(measure.features(params[label], x) for x in (ours, real))


def _places(
  scored: Mapping[str, combine.Weighted],
  sets: Mapping[str, Measure],
  layout: sharding.Layout | None,
) -> dict[str, Any] | None:
  """{kind: {label: shardings of a reader's parameters}}; None: one device."""
  if not layout or layout.mesh.size == 1:
    return None
  places = {
    kind: {
      label: layout.judge(reward.params, reward.axes)
      for label, (reward, weight) in named.items()
      if weight
    }
    for kind, named in scored.items()
  }
  places['sets'] = {k: layout.judge(m.params, m.axes) for k, m in sets.items()}
  return places


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
  keep: Callable[[Any], Any] | None = None,
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
    keep: see `chunks.evaluator`.

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
    return verdicts.evaluation(media, out, True, True, spread, texts, tasks)

  chunked = chunks.evaluator(run, batch, samples, chunk, layout, keep)
  return chunks.Evaluator(
    lambda params: summed(chunked.call(params)), chunked.trace
  )


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
          f'{chunk}, the samples that are drawn at a time (eval.chunk, or '
          'those of a step)'
        )


def kl_from_base(
  policy: Policy,
  batch: Mapping[str, Any],
  samples: int,
  seed: int,
  view: Callable[[Rows], tuple[PyTree, PyTree]] | None = None,
  layout: sharding.Layout | None = None,
  chunk: int = 0,
  keep: Callable[[Any], Any] | None = None,
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
    return verdicts.mean(kl, ~np.isnan(kl))

  chunked = chunks.evaluator(run, batch, samples, chunk, layout, keep)
  return chunks.Evaluator(
    lambda params, base: mean(chunked.call(params, base)), chunked.trace
  )
