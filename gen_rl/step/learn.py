"""The third station: objectives -> gradients -> parameters.

The loss of a minibatch is

  L = sum_j w_j  sum_bk(value_j a_j) / sum_b n_j,  0 where that is 0     (1)

with a_j and n_j what `aggregate` makes of the term's mask times the row weight
(the mask itself and its sum: a mean over decisions). The row weight is that of
the advantage, or 1 for a term that counts every row, and always 0 for a row
that was not scored or holds a number that is not finite: nothing of such a row
reaches a gradient. The denominators are those of the whole minibatch, over all
devices and microbatches, so gradients add up whatever the cut.

One rollout feeds `epochs` x `updates` optimizer steps. With one, the behaviour
policy is the current one and every ratio is exactly 1; with more, the old
log-probs are recomputed first by this program, at the geometry of the updates;
for the first minibatch, whose parameters are the old ones, they are its own, so
that its ratios are exactly 1 too (a forward pass that keeps values for the
gradient may round otherwise than one that does not).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_rl import aggregate as aggregate_lib
from gen_rl import minibatch
from gen_rl.build import ConfigError
from gen_rl.rewards import combine, evaluate
from gen_rl.rewards import inputs as inputs_lib
from gen_rl.step import ask, choose
from gen_rl.step.recipe import Recipe
from gen_rl.train_state import TrainState
from gen_rl.types import (
  Array,
  Experience,
  Metrics,
  Objective,
  Params,
  PyTree,
  Replay,
  RewardOut,
  RowKeys,
)
from gen_rl.utils import rng, tree


def update(
  recipe: Recipe, state: TrainState, exp: Experience, key: Array
) -> tuple[TrainState, Metrics]:
  """All optimizer steps of a rollout.

  Args:
    recipe: of the step.
    state: before them.
    exp: of `judge`, rows [b ...].
    key: the run's.
  """
  key = jax.random.fold_in(rng.stream_keys(key, 'update'), state.step)
  exp, row_keys, chosen = choose.choose(
    recipe, exp, _row_keys(key, exp.traj.group)
  )
  b, unit, updates = exp.weight.shape[0], recipe.unit, recipe.updates
  if error := minibatch.geometry_error(b, updates, recipe.microbatches, unit):
    raise ConfigError(error)
  order_key = rng.stream_keys(key, 'order')
  old = recipe.behaviour_params(state)
  exp = exp.replace(sampled=exp.traj.log_prob)
  if recipe.recompute and exp.traj.log_prob.size:
    # Old log-probs by this program, at the geometry of the updates.
    log_prob = ask.in_pieces(
      recipe,
      exp,
      lambda piece: ask.replay(recipe, state, old, piece, params=old).ask(
        'params', 'log_prob'
      ),
    )
    exp = exp.replace(traj=exp.traj.replace(log_prob=log_prob))
  logs = []
  carry = (state, old)
  for epoch in range(recipe.epochs):
    keys = RowKeys(*(rng.step_keys(k, epoch) for k in row_keys))
    xs = exp, keys
    if updates > 1:
      shuffled = jax.random.permutation(
        jax.random.fold_in(order_key, epoch), b // unit
      )
      order = (unit * shuffled[:, None] + jnp.arange(unit)).reshape(-1)
      xs = jax.tree.map(lambda a, o=order: a[o], xs)
    numbers = epoch * updates + jnp.arange(updates)
    carry, log = recipe.fold(
      lambda carry, xs: _minibatch_step(recipe, carry, xs),
      carry,
      (*recipe.cut(xs, updates), numbers),
    )
    logs.append(log)
  sums, peaks = jax.tree.map(lambda *x: jnp.concatenate(x), *logs)
  state = _after(recipe, carry[0])
  metrics = {
    name: (jnp.nanmean if recipe.left_out(name) else jnp.mean)(x)
    for name, x in sums.items()
  }
  for name, x in peaks.items():
    metrics[name] = (jnp.nanmax if recipe.left_out(name) else jnp.max)(x)
  metrics |= chosen
  metrics['optim/skipped'] = state.skipped
  metrics['optim/skipped_in_a_row'] = state.skipped_in_a_row
  return state, metrics


def _row_keys(key: Array, group: Array) -> RowKeys:
  """Keys of rows [b], and of their groups."""
  fold_in = jax.vmap(jax.random.fold_in, (None, 0))
  group_key = rng.stream_keys(key, 'group')
  return RowKeys(
    fold_in(key, jnp.arange(group.shape[0])), fold_in(group_key, group)
  )


def _after(recipe: Recipe, state: TrainState) -> TrainState:
  """Copies follow, and the step is counted."""
  for name, decay in recipe.copies.items():
    moved = optax.incremental_update(
      state.params, state.refs[name], 1.0 - decay(state.step)
    )
    state = state.replace(refs={**state.refs, name: moved})
  return state.replace(step=state.step + 1)


class _Lesson(NamedTuple):
  """Whose parameters move, and by which losses."""

  live: str  # "params", or a learner
  # {label: (., weight)}
  objectives: Mapping[str, tuple[Objective, float | Array]]
  aggregate: aggregate_lib.Aggregator


def _minibatch_step(recipe: Recipe, carry, xs):
  """One optimizer step, of the policy and of the learners beside it.

  Args:
    recipe: of the step.
    carry: (TrainState, trained parameters that sampled).
    xs: (Experience, keys of its rows, number of the optimizer step).
  """
  state, old = carry
  exp, keys, number = xs
  first = (number == 0) & (recipe.behaviour == 'params')
  done = state.step * recipe.updates * recipe.epochs + number
  objectives = recipe.moved_objectives(state.step)
  lesson = _Lesson('params', objectives, recipe.aggregate)
  taught, said, waits = _teach(recipe, state, old, exp, keys, first, done)

  def step(state):
    grads, sums, peaks, decisions = _gradients(
      recipe, lesson, state.params, state, old, exp, keys, first
    )
    new, norms = _move(recipe, state, grads, number, waits)
    named = {f'{label}/decisions': n for label, n in decisions.items()}
    return new, ({**sums, **named, **norms}, peaks)

  new, (metrics, peaks) = state, ({}, {})
  if recipe.objectives:
    new, (metrics, peaks) = _at_times(recipe.policy_every, done, step, state)
  if taught:
    aux = recipe.layout.constrain(state.replace(aux=taught)).aux
    new, metrics = new.replace(aux=aux), {**metrics, **said}
  metrics |= {
    f'{label}/weight': objectives[label][1] for label in recipe.objective_ramps
  }
  return (new, old), (metrics, peaks)


def _at_times(
  every: int, done: Array, step: Callable[[PyTree], Any], held: PyTree
) -> tuple[PyTree, Any]:
  """`step(held)`, (what it becomes, metrics), at every `every`-th call.

  At the others nothing moves, and metrics are NaN.

  Args:
    every: calls from one to the next.
    done: [] calls before this one.
    step: one optimizer step.
    held: what it moves.
  """
  if every == 1:
    return step(held)
  _, like = jax.eval_shape(step, held)
  none = jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), like)
  return jax.lax.cond(done % every == 0, step, lambda held: (held, none), held)


def _gradients(recipe, lesson, params, state, old, exp, keys, first):
  """(gradients, metric sums, metric peaks, decisions a row) of a minibatch."""
  # Masks do not depend on parameters: the compiler drops the networks here.
  whole = _terms(recipe, lesson, params, state, old, exp, keys, first)
  totals = {
    label: aggregate_lib.totals(lesson.aggregate, term.mask)
    for label, term in whole.items()
  }
  grad_fn = jax.grad(_microbatch_loss, argnums=2, has_aux=True)
  pieces = (
    recipe.cut(exp, recipe.microbatches), recipe.cut(keys, recipe.microbatches)
  )  # fmt: skip
  grad, shapes, _ = minibatch.trace(
    lambda *piece: grad_fn(
      recipe, lesson, params, state, old, first, *piece, totals
    ),
    *jax.tree.map(lambda a: a[0], pieces),
  )

  def accumulate(carry, piece):
    grads, sums, peaks = carry
    g, (s, p) = grad(*piece)
    grads, sums = jax.tree.map(jnp.add, (grads, sums), (g, s))
    if lesson.live == 'params':
      grads = recipe.layout.constrain(state.replace(params=grads)).params
    return (grads, sums, jax.tree.map(jnp.maximum, peaks, p)), None

  start = (shapes[0], *shapes[1])
  start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), start)
  grads, sums, peaks = recipe.fold(accumulate, start, pieces)[0]
  decisions = {label: term.decisions for label, term in whole.items()}
  return grads, sums, peaks, decisions


def _microbatch_loss(
  recipe, lesson, params, state, old, first, exp, keys, totals
):
  """Equation (1) restricted to a microbatch, and its metric sums."""
  loss, sums, peaks = jnp.zeros(()), {}, {}
  terms = _terms(recipe, lesson, params, state, old, exp, keys, first)
  for label, term in terms.items():
    part, means, tops = aggregate_lib.reduce(
      lesson.aggregate, term.value, term.mask, term.metrics, totals[label]
    )
    loss += term.weight * part
    sums |= {f'{label}/{k}': x for k, x in ({'loss': part} | means).items()}
    peaks |= {f'{label}/{k}': x for k, x in tops.items()}
  return loss, (sums, peaks)


class _Weighted(NamedTuple):
  """A term of the loss, with the weights of its rows."""

  value: Array  # [b k]
  mask: Array  # [b k], times the row weight
  weight: float | Array  # w_j
  metrics: Metrics
  decisions: Array  # a row, whatever became of it


def _terms(
  recipe: Recipe,
  lesson: _Lesson,
  params: Params,
  state: TrainState,
  old: Params,
  exp: Experience,
  keys: RowKeys,
  first: Array,
) -> dict[str, _Weighted]:
  """Every objective's term, with the parameters `params` of who learns."""
  score = _scorer(recipe, state)
  replay = ask.replay(
    recipe, state, old, exp, first, score, lesson.live, params
  )
  ours = lesson.live == 'params'
  if ours and recipe.recompute and exp.traj.log_prob.size:
    own = jax.lax.stop_gradient(replay.ask('params', 'log_prob'))
    own = jnp.where(first, own, exp.traj.log_prob)
    exp = exp.replace(traj=exp.traj.replace(log_prob=own))
  if ours and recipe.importance_cap and exp.traj.log_prob.size:
    weights = jnp.exp(_log_ratio_of_sampler(recipe, replay, exp))
    exp = exp.replace(adv=exp.adv * jnp.minimum(weights, recipe.importance_cap))
  out, compared = {}, not ours
  for label, (objective, weight) in lesson.objectives.items():
    try:
      term, metrics = objective(replay, exp, keys)
    except ConfigError as error:
      place = 'objective' if ours else 'learners'
      raise ConfigError(f'config.{place}.{label}: {error}') from None
    decides = term.mask.shape == exp.traj.mask.shape
    if decides and not compared and replay.asked('params', 'log_prob'):
      gap = jnp.abs(_log_ratio_of_sampler(recipe, replay, exp))
      metrics = {**metrics, 'sampler_gap': gap, 'sampler_gap_max': gap}
      compared = True
    valid = exp.rewards.valid.astype(jnp.float32)
    rows = valid if term.every_row else exp.weight * valid
    mask = jax.lax.stop_gradient(term.mask * rows[:, None])
    decisions = term.mask.sum(-1).mean()
    out[label] = _Weighted(term.value, mask, weight, metrics, decisions)
  return out


def _log_ratio_of_sampler(
  recipe: Recipe, replay: Replay, exp: Experience
) -> Array:
  """Log p of the update less that of the rollout, [b k], by equal parameters.

  The two are the same numbers by different programs: with cached keys and in
  steps there, in one pass here.
  """
  ours = exp.traj.log_prob  # recomputed
  if not recipe.recompute:
    ours = jax.lax.stop_gradient(replay.ask('params', 'log_prob'))
  return jnp.where(exp.traj.mask > 0, ours - exp.sampled, 0.0)


def _scorer(
  recipe: Recipe, state: TrainState
) -> Callable[..., RewardOut] | None:
  """Rewards as a differentiable function of samples, if they all are."""
  rewards = recipe.device_rewards
  smooth = all(reward.differentiable for reward, _ in rewards.values())
  if not rewards or recipe.host_rewards or not smooth:
    return None

  def score(params, samples, exp, keys):
    _check_whole(recipe)
    # Where groups are cut, every row is a group: a reward that reads a prompt
    # once for its group must not read another's.
    inputs = inputs_lib.joined(exp.inputs, exp.traj).replace(
      media=recipe.policy.decode(params, samples),
      said=samples,
      group_size=recipe.unit,
    )
    outs = evaluate.evaluate(rewards, inputs, keys, recipe.reward_params(state))
    weights = recipe.reward_weights(state.step)
    return combine.merge(outs, weights, recipe.mix, recipe.unit)

  return score


def _teach(
  recipe: Recipe,
  state: TrainState,
  old: Params,
  exp: Experience,
  keys: RowKeys,
  first: Array,
  done: Array,
) -> tuple[dict[str, PyTree], Metrics, Array]:
  """({label: parameters, optimizer state}, metrics, whose turn) of learners.

  All of them learn from what the policy learns from, by the parameters before
  its step. Whose turn is [] bool: that of one of them, and the policy waits.
  """
  aux, metrics, skipped = dict(state.aux), {}, jnp.zeros(())
  turn = jnp.zeros((), bool)
  for i, (label, taught) in enumerate(recipe.learners.items()):
    lesson = _Lesson(
      label, {label: (taught.learner.loss, 1.0)}, aggregate_lib.token_mean
    )
    drawn = RowKeys(*(rng.stream_keys(k, f'learner {i}') for k in keys))
    held = state.aux[label]

    def step(held, label=label, lesson=lesson, tx=taught.tx, keys=drawn):
      grads, sums, _, _ = _gradients(
        recipe, lesson, held['params'], state, old, exp, keys, first
      )
      deltas, opt_state = tx.update(grads, held['opt_state'], held['params'])
      params = optax.apply_updates(held['params'], deltas)
      finite = jnp.isfinite(optax.tree.norm(deltas))
      moved = dict(params=params, opt_state=opt_state)
      said = {f'{label}/skipped': 1.0 - finite}
      if turn := recipe.learners[label].learner.turn:
        finite &= (own := sums[f'{label}/{turn}'] < 0)
        said[f'{label}/turn'] = own.astype(jnp.float32)
      return tree.where(finite, moved, held), {**sums, **said}

    aux[label], sums = _at_times(taught.every, done, step, held)
    skipped += jnp.nan_to_num(sums[f'{label}/skipped'])
    turn |= sums.get(f'{label}/turn', 0.0) > 0
    metrics |= {f'learner/{name}': x for name, x in sums.items()}
  if recipe.learners:
    metrics['learner/skipped'] = skipped
  return aux, metrics, turn


def _check_whole(recipe: Recipe) -> None:
  """Raises ConfigError for rewards that compare rows of several parts."""
  parts = f'updates={recipe.updates} x microbatches={recipe.microbatches}'
  compare = {
    f'the reward {label!r}': reward.called_on
    for label, (reward, _) in recipe.device_rewards.items()
  }
  if recipe.mix:
    compare['config.mix'] = recipe.mix.called_on
  for who, called_on in compare.items():
    said = f'{who} compares the rows of a '
    if called_on == 'groups' and recipe.unit < recipe.group_size:
      raise ConfigError(
        f'{said}group, and the objectives of this run do not keep groups '
        'together: add one that takes group_size'
      )
    if called_on == 'batch' and recipe.updates * recipe.microbatches > 1:
      raise ConfigError(
        f'{said}batch, and its gradient is taken in {parts} parts: set both '
        'to 1'
      )


def _move(
  recipe: Recipe, state: TrainState, grads: Params, number: Array, waits: Array
) -> tuple[TrainState, Metrics]:
  """The optimizer's step; none where it is not finite, or has to wait.

  Args:
    recipe: of the step.
    state: before it.
    grads: of the trained parameters.
    number: of the optimizer step, of those of this rollout.
    waits: [] bool, it is the turn of a learner.
  """
  layout = recipe.layout
  norm = optax.tree.norm(grads)
  if layout.offload:  # not before its gradients are known
    state = layout.near(jax.lax.optimization_barrier((state, norm))[0])
  deltas, opt_state = recipe.tx.update(grads, state.opt_state, state.params)
  update_norm = optax.tree.norm(deltas)
  finite = jnp.isfinite(norm) & jnp.isfinite(update_norm)
  params = optax.apply_updates(state.params, deltas)
  refs = dict(state.refs)
  if decay := recipe.ema_decay:
    if callable(decay):
      done = state.step * recipe.updates * recipe.epochs + number
      decay = decay(done // recipe.policy_every + 1)
    refs['ema'] = optax.incremental_update(
      params, state.refs['ema'], 1.0 - decay
    )
  new = state.replace(params=params, opt_state=opt_state, refs=refs)
  new = tree.where(finite & ~waits, new, state)
  bad = 1 - finite.astype(jnp.int32)
  new = new.replace(
    skipped=state.skipped + bad,
    skipped_in_a_row=(state.skipped_in_a_row + 1) * bad,
  )
  norms = {'optim/grad_norm': norm, 'optim/update_norm': update_norm}
  return layout.far(layout.constrain(new)), norms
