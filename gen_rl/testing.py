"""Small parts with which tests build a whole training step in a second.

The net is a two-layer perceptron on 4x4 pictures, the prompts ask for one of
three colours, and the reward is how much of it there is. `make_step` puts them
together; where attention matters, `dit` takes the place of the perceptron.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen_rl import (
  advantages,
  aggregate,
  build,
  objectives,
  optim,
  rollout,
  train_state,
  train_step,
)
from gen_rl import testing_nets as nets
from gen_rl.models.parts.layers import Net
from gen_rl.policies import denoising
from gen_rl.rewards import combine
from gen_rl.types import (
  Advantage,
  AnyArray,
  Array,
  Dist,
  Experience,
  Metrics,
  Objective,
  Params,
  Policy,
  PyTree,
  Replay,
  Reward,
  RewardInputs,
  RewardOut,
  Term,
  Trajectory,
)
from gen_rl.utils import origins

SHAPE, jitted, perceptron = nets.SHAPE, nets.jitted, nets.perceptron
point_net, dit = nets.point_net, nets.dit
bigram, mask_table = nets.bigram, nets.mask_table

SEED = 7  # of the steps that `run` takes
# Where two programs are compared: linear in the gradient. Adam's first steps
# are its sign, which rounding decides where a gradient is nearly 0.
LINEAR = optax.sgd(0.5, momentum=0.9)


def batch(prompt_ids: Sequence[int] = (0, 1, 2, 3)) -> dict[str, Any]:
  """Prompts as the pipeline yields them; what a prompt is follows its id."""
  ids = np.asarray(prompt_ids, np.int32)
  tokens = np.stack([ids % 7 + 1, ids // 7 % 8], -1).astype(np.int32)
  return dict(tokens=tokens, prompt_id=ids, info=dict(channel=ids % 3))


def dit_batch(prompt_ids: Sequence[int] = (0, 1, 2, 3)) -> dict[str, Any]:
  """`batch` with the four tokens a prompt of `dit` has."""
  prompts = batch(prompt_ids)
  return prompts | dict(tokens=np.tile(prompts['tokens'], (1, 2)))


def color_reward(
  spoil: Callable[[Array, Array], Array] | None = None, where: str = 'device'
) -> Reward:
  """Mean of the channel asked for, minus that of all.

  It reads the prompt once for its group, as rewards with a text encoder do.

  Args:
    spoil: (score [b], channel [b]) -> score [b], to break some of them.
    where: 'device' or 'host'.
  """

  def score(params: Params, inputs: RewardInputs, key: Array) -> RewardOut:
    del params, key
    mean = inputs.image.mean((1, 2))
    size = int(inputs.group_size)
    channel = inputs.info['channel'][::size].repeat(size)
    out = mean[np.arange(len(mean)), channel] - mean.mean(-1)
    if spoil is not None:
      out = spoil(out, channel)
    return RewardOut(out, dict(red=mean[:, 0]), jnp.ones(len(mean), bool))

  return Reward('color', (), score, where=where, differentiable=True)


def make_policy(net: Net | None = None, **kwargs: Any) -> Policy:
  """Four denoising steps of a net, the perceptron by default."""
  kwargs = dict(steps=4, shift=2.0, noise=0.6) | kwargs
  return jitted(denoising.denoising(net or perceptron(), **kwargs))


def scored(score: Any, valid: Any = None) -> RewardOut:
  """A batch with these scores [b], all valid unless `valid` says otherwise."""
  if not isinstance(score, jax.Array):  # numpy's: no program makes them
    score = np.asarray(score, np.float32)
  valid = np.ones(score.shape, bool) if valid is None else np.asarray(valid)
  return RewardOut(score=score, parts={}, valid=valid)


def ragged(seed: int, groups: int, size: int) -> tuple[np.ndarray, np.ndarray]:
  """(scores, valid) [groups * size]: an empty group, a lone row, NaN gaps."""
  rng = np.random.default_rng(seed)
  score = rng.normal(3, 2, groups * size).astype(np.float32)
  valid = rng.random(groups * size) < 0.7
  valid[:size] = False  # an empty group
  valid[size + 1 : 2 * size] = False
  valid[size] = True  # a lone row
  return np.where(valid, score, np.nan), valid


@jax.jit
def given(sample: PyTree, cond: PyTree) -> Trajectory:
  """Samples [b ...] without decisions, of one prompt."""
  b = jax.tree.leaves(sample)[0].shape[0]
  return rollout.given(sample, cond, jnp.zeros(b, jnp.int32))


def answers(**ops: Callable[..., Any]) -> Replay:
  """A replay of {capability: (which, *args) -> answer}, for objectives."""
  return Replay(lambda which, op, *args: ops[op](which, *args))


def all_installed(monkeypatch: Any) -> None:
  """Of `origins`: tests count as installed.

  Modules of other tests whose files have gone count as never loaded.
  """
  monkeypatch.setattr(origins, '_is_installed', lambda path: True)
  for name, module in list(sys.modules.items()):
    path = getattr(module, '__file__', None)
    if isinstance(path, str) and not os.path.exists(path):
      monkeypatch.delitem(sys.modules, name)


def drawn(shapes: PyTree, seed: int = 0) -> PyTree:
  """Parameters of these shapes without a program, which takes seconds.

  Args:
    shapes: ShapeDtypeStructs, as of `initial.shapes`.
    seed: of the numbers, whose deviation is 0.1.
  """
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.normal(0, 0.1, x.shape).astype(x.dtype), shapes
  )


@functools.partial(jax.jit, static_argnames='size')
def moved(params: Params, key: Array, size: float) -> Params:
  """Away from zeros and unit scales, so that every parameter matters.

  Args:
    params: any tree of arrays.
    key: of the numbers that are added to each.
    size: their deviation.
  """
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  leaves = [
    x + size * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)
  ]
  return jax.tree.unflatten(treedef, leaves)


def grad(function: Any, *args: Any, **kwargs: Any) -> Any:
  """`jax.grad`, compiled."""
  return jax.jit(jax.grad(function, *args, **kwargs))


def value_and_grad(function: Any, *args: Any, **kwargs: Any) -> Any:
  """`jax.value_and_grad`, compiled."""
  return jax.jit(jax.value_and_grad(function, *args, **kwargs))


@jax.jit
def log_prob(dist: Dist, actions: PyTree) -> Array:
  """`dist.log_prob(actions)`, compiled."""
  return dist.log_prob(actions)


def term_of(
  objective: Objective, replay: Any, exp: Experience
) -> tuple[Term, Metrics]:
  """(Term, metrics) of an objective that draws nothing, compiled."""
  return jax.jit(lambda exp: objective(replay, exp, None))(exp)


def advantages_of(
  advantage: Advantage, score: Any, valid: Any = None, group: Any = None
) -> tuple[np.ndarray, np.ndarray, Metrics]:
  """(A [b], weight [b], metrics) of one update of a row-wise advantage."""
  group = np.zeros(len(score), np.int32) if group is None else group
  adv, weight, _, metrics = jax.jit(advantage.update)(
    scored(score, valid), group, advantage.init()
  )
  assert adv.shape == (len(score), 1) and weight.shape == (len(score),)
  assert adv.dtype == weight.dtype == jnp.float32
  return np.asarray(adv[:, 0]), np.asarray(weight), metrics


def terms() -> dict[str, tuple[Objective, float]]:
  """Every objective, {name: (objective, 1.0)}, for one update per rollout.

  Those that compare rows do so in groups of 4, as `make_step` has them.
  """
  made = {
    name: build.build(objectives, name, group_size=4)
    for name in build.names(objectives)
    if name != 'of_segment'  # of policies that are made of two
  }
  # The published temperature is for nets whose errors change little.
  made |= {n: getattr(objectives, n)(4, beta=10.0) for n in ('dpo', 'kto')}
  made |= dict(
    guard=objectives.clipped_pg(ratio='guard'), kl_path=objectives.kl(path=True)
  )
  return {name: (objective, 1.0) for name, objective in made.items()}


def make_step(
  policy: Policy | None = None,
  terms: Mapping[str, tuple[Objective, float]] | None = None,
  *,
  reward: Reward | None = None,
  advantage: Advantage | None = None,
  tx: optax.GradientTransformation | None = None,
  group_size: int = 4,
  on_policy: bool | None = None,
  trainable: str = '',
  **kwargs: Any,
) -> tuple[train_step.Step, train_state.TrainState]:
  """(Step, state) of a small run.

  Args:
    policy: default `make_policy()`.
    terms: {name: (objective, weight)}; default a policy gradient and a KL.
    reward: default `color_reward()`.
    advantage: default GRPO.
    tx: optimizer; default AdamW.
    group_size: samples of a prompt.
    on_policy: of the default policy gradient; by default, whether there is one
      update per rollout.
    trainable: regular expression on parameter names; '' trains all.
    **kwargs: of `train_step.make`.
  """
  policy = policy or make_policy()
  reward = reward or color_reward()
  advantage = advantage or advantages.grpo(group_size)
  tx = tx or optim.adamw(lr=1e-2, b2=0.99)
  if on_policy is None:
    on_policy = kwargs.get('updates', 1) * kwargs.get('epochs', 1) == 1
  terms = terms or dict(
    pg=(objectives.clipped_pg(1e-2, on_policy=on_policy), 1.0),
    kl=(objectives.kl(), 0.1),
  )
  step = train_step.make(
    policy,
    terms,
    tx,
    rewards=dict(color=(reward, 1.0)),
    advantage=advantage,
    group_size=group_size,
    ema_decay=0.9,
    **kwargs,
  )
  state = train_state.create(
    jax.jit(policy.init)(jax.random.key(1)),
    tx,
    advantage,
    trainable=trainable,
    refs=('ref', 'ema'),
    reward_params=combine.params(
      {'color': (reward, 1.0), **kwargs.get('monitors', {})}
    ),
    learners=kwargs.get('learners'),
    key=jax.random.key(2),
  )
  return step, state


def run(
  step: train_step.Step,
  state: train_state.TrainState,
  steps: int = 2,
  prompts: Mapping[str, Any] | None = None,
) -> tuple[train_state.TrainState, list[Metrics]]:
  """Takes steps on the same prompts: (state, metrics of each), on the host."""
  key, logs = jax.random.key(SEED), []
  for _ in range(steps):
    state, log = step.train_step(state, prompts or batch(), key)
    logs.append(jax.device_get(log))
  return jax.device_get(state), logs


def assert_close(
  a: PyTree, b: PyTree, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
  """Two trees are equal to rounding."""
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b
  )


def assert_same(a: PyTree, b: PyTree, to: float = 1e-6) -> None:
  """Two trees are equal to `to`; if it is above 1, to `to` of the largest."""

  def close(x: AnyArray, y: AnyArray) -> None:
    largest = max(1.0, float(np.abs(y).max()))
    np.testing.assert_allclose(x, y, rtol=0, atol=to * largest)

  jax.tree.map(close, a, b)


def result() -> dict[str, Any]:
  """A result.json as a good run leaves it; see `results`."""
  return dict(
    schema_version=1,
    config_name='flow_grpo:tiny',
    seed=3,
    steps=150,
    base=dict(
      strict=0.62,
      strict_per_task={'counting': 0.5, 'two_object': 0.74},
      proxy=0.7,
      diversity=0.2,
    ),
    trained=dict(
      strict=np.float32(0.914),
      strict_per_task={'counting': 0.9, 'two_object': 0.93},
      proxy=0.95,
      diversity=0.19,
    ),
    kl=0.03,
    wall_seconds=461.2,
    seconds_to_first_metric=31.0,
    samples_per_second=42.5,
    peak_rss_bytes=2 * 2**30,
    updates_skipped=0,
    device='cpu',
    cpus=2,
    jax_version='0.10.2',
    git_commit=None,
  )


def of_unlike_lengths(aggregator: str) -> dict[str, Any]:
  """Keywords of a step whose rows have 1 to 3 decisions, and some are lost."""

  def objective(replay, exp, keys):
    term, metrics = objectives.clipped_pg()(replay, exp, keys)
    short = (
      jnp.arange(term.mask.shape[1]) <= exp.inputs.info['channel'][:, None]
    )
    return term.replace(mask=term.mask * short), metrics

  def spoil(score, channel):
    """The best rows of a channel cannot be scored."""
    return jnp.where((channel == 2) & (score > score.mean()), jnp.nan, score)

  return dict(
    terms=dict(pg=(objective, 1.0)),
    reward=color_reward(spoil),
    aggregate=getattr(aggregate, aggregator),
    tx=LINEAR,
  )


def memory_kinds(x: Any) -> set[str]:
  """Kinds of memory the arrays are in; numbers stay on the devices."""
  return {a.sharding.memory_kind for a in jax.tree.leaves(x) if a.ndim}
