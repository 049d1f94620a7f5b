"""The one step: roll out, score, compare within groups, update.

  collect(state, batch, key)  -> (state, Experience, metrics)
  update(state, experience, key) -> (state, metrics)
  train_step = jit(update o collect), with the state donated

Host rewards cut the same functions in other places: `sample` (rollout and
device rewards, jitted), scoring on the host, `learn` (advantage and update,
jitted). Nothing else differs, and the results agree.

The loss of a minibatch is

  L = sum_j w_j  sum_bk(value_j m_j) / max(sum_bk m_j, 1)                (1)

with m_j the term's mask times the row weight. The denominators are those of
the whole minibatch, over all devices and microbatches, so gradients add up
whatever the cut. One rollout feeds `epochs` x `updates` optimizer steps. With
one, the behaviour policy is the current one and every ratio is exactly 1;
with more, the old log-probs are recomputed first by this program, at the
geometry of the updates; for the first minibatch, whose parameters are the old
ones, they are its own, so that its ratios are exactly 1 too (a forward pass
that keeps values for the gradient may round otherwise than one that does not).
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen_rl import rollout as rollout_lib
from gen_rl.build import ConfigError
from gen_rl.rewards import combine, evaluate
from gen_rl.train_state import TrainState
from gen_rl.types import (
  Advantage,
  Array,
  Experience,
  Metrics,
  Objective,
  Params,
  Policy,
  PyTree,
  Replay,
  RewardInputs,
  RewardOut,
  Rows,
  Trajectory,
)
from gen_rl.utils import rng, tree


class Step(NamedTuple):
  """The pieces, unjitted, and the compositions, jitted."""

  collect: Callable[..., tuple[TrainState, Experience, Metrics]]
  update: Callable[..., tuple[TrainState, Metrics]]
  train_step: Callable[..., tuple[TrainState, Metrics]]
  sample: Callable[..., tuple[Trajectory, RewardInputs, dict[str, RewardOut]]]
  learn: Callable[..., tuple[TrainState, Metrics]]


def geometry_error(rows: int, updates: int, microbatches: int) -> str | None:
  """Why `rows` cannot be cut into minibatches and microbatches, or None."""
  parts = updates * microbatches
  if rows % parts == 0:
    return None
  fit = [m for m in range(1, rows // updates + 1) if rows % (updates * m) == 0]
  return (
    f'{rows} rows (prompts_per_step * group_size) cannot be cut into '
    f'updates={updates} x microbatches={microbatches} equal parts'
    + (
      f'; with updates={updates}, microbatches may be '
      f'{", ".join(map(str, fit))}'
      if fit
      else f'; updates must divide {rows}'
    )
  )


def _fold(body: Callable, carry: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
  """lax.scan, as a Python loop on CPUs.

  XLA's CPU backend runs convolution gradients inside a while loop many times
  slower than outside of one.
  """
  if jax.default_backend() != 'cpu':
    return jax.lax.scan(body, carry, xs)
  outs = []
  for i in range(jax.tree.leaves(xs)[0].shape[0]):
    carry, out = body(carry, jax.tree.map(lambda x, i=i: x[i], xs))
    outs.append(out)
  return carry, jax.tree.map(lambda *x: jnp.stack(x), *outs)


def _cut(x: PyTree, parts: int) -> PyTree:
  """[b ...] -> [parts b/parts ...] on every leaf."""
  return jax.tree.map(
    lambda a: a.reshape(parts, a.shape[0] // parts, *a.shape[1:]), x
  )


def _expand_mask(mask: Array, weight: Array) -> Array:
  return mask * weight[:, None]


def make(
  policy: Policy,
  objectives: Mapping[str, tuple[Objective, float]],
  tx: optax.GradientTransformation,
  *,
  rollout: Callable[..., Trajectory] | None = None,
  rewards: combine.Weighted | None = None,
  advantage: Advantage | None = None,
  group_size: int = 1,
  microbatches: int = 1,
  updates: int = 1,
  epochs: int = 1,
  ema_decay: float = 0.0,
  mesh: jax.sharding.Mesh | None = None,
) -> Step:
  """Composes the step.

  Args:
    policy: what is trained.
    objectives: {label: (objective, weight)}.
    tx: the optimizer.
    rollout: (params, rows, step) -> Trajectory; default: the policy's own.
    rewards: {label: (Reward, weight)}; None for data batches, which get
      advantage 0 and weight 1.
    advantage: turns scores into advantages; goes with `rewards`.
    group_size: G, samples per prompt.
    microbatches: gradient accumulation inside one optimizer step.
    updates: optimizer steps (minibatches) per pass over a rollout.
    epochs: passes over a rollout.
    ema_decay: of refs["ema"], per optimizer step; 0 keeps no average.
    mesh: rows are sharded over all of its axes; None: no constraint.

  Returns:
    The Step. `batch` is what the pipeline yields, `key` the run's root key.

  Raises:
    ConfigError: rewards without an advantage, or the other way round.
  """
  if (rewards is None) != (advantage is None):
    raise ConfigError(
      'rewards and an advantage go together: a config has both, or neither '
      '(training on data)'
    )
  rollout = rollout or rollout_lib.policy_rollout(policy)
  device_rewards, host_rewards = combine.split(rewards or {})
  reward_weights = combine.weights({**device_rewards, **host_rewards})

  def shard(x: PyTree) -> PyTree:
    if mesh is None:
      return x
    spec = jax.sharding.PartitionSpec(mesh.axis_names)
    sharding = jax.sharding.NamedSharding(mesh, spec)
    # What all rows share (Rows.key) has no axis to split.
    return jax.tree.map(
      lambda a: jax.lax.with_sharding_constraint(a, sharding) if a.ndim else a,
      x,
    )

  def full(params: Params, state: TrainState) -> Params:
    return tree.merge(params, state.frozen['policy'])

  def sample(
    state: TrainState, batch: Mapping[str, Any], key: Array
  ) -> tuple[Trajectory, RewardInputs, dict[str, RewardOut]]:
    rows: Rows = shard(
      rollout_lib.make_rows(batch, group_size, key, state.step)
    )
    params = full(state.params, state)
    traj = jax.lax.stop_gradient(rollout(params, rows, state.step))
    if rewards is None:
      return traj, RewardInputs((), rows.info, group_size), {}
    media = policy.decode(params, traj.sample)
    inputs = RewardInputs(media, rows.info, group_size)
    keys = rng.stream_keys(rows.keys, 'reward')
    outs = evaluate.evaluate(
      device_rewards, inputs, keys, state.frozen['rewards']
    )
    return traj, inputs, outs

  def judge(
    state: TrainState, traj: Trajectory, outs: Mapping[str, RewardOut]
  ) -> tuple[TrainState, Experience, Metrics]:
    b = traj.group.shape[0]
    if advantage is None:
      one = jnp.ones(b, jnp.float32)
      out = RewardOut(jnp.zeros(b), {}, jnp.ones(b, bool))
      return state, Experience(traj, jnp.zeros((b, 1)), one, out), {}
    out = combine.merge(outs, reward_weights)
    adv, weight, adv_state, metrics = advantage.update(
      out, traj.group, state.adv_state
    )
    metrics = {**combine.summarize(out), **metrics}
    state = state.replace(adv_state=adv_state)
    return state, Experience(traj, adv, weight, out), metrics

  def collect(state, batch, key):
    traj, _, outs = sample(state, batch, key)
    return judge(state, traj, outs)

  def make_replay(
    copies: dict[str, Params], exp: Experience, first: Array | bool = False
  ) -> Replay:
    """Answers for one microbatch; each copy is evaluated at most once.

    `first`: the old parameters are the current ones, and so are the answers.
    """

    def of(which: str) -> Params:
      if which not in copies:
        raise ConfigError(
          f'an objective asks for the parameter copy {which!r}; this run '
          f'keeps {", ".join(copies)}'
        )
      return copies[which]

    def fixed(which: str, x: PyTree) -> PyTree:
      return x if which == 'params' else jax.lax.stop_gradient(x)

    @functools.cache
    def dist(which: str):
      found = fixed(which, policy.dist(of(which), exp.traj))
      if which != 'old':
        return found
      return tree.where(first, fixed(which, dist('params')), found)

    @functools.cache
    def log_prob(which: str) -> Array:
      return dist(which).log_prob(exp.traj.actions)

    @functools.cache
    def velocity(which: str) -> Array:
      if policy.velocity is None:
        raise ConfigError('this policy does not predict velocities')
      return fixed(which, policy.velocity(of(which), exp.traj))

    def nll(which: str, keys: Array) -> Array:
      return fixed(
        which, policy.nll(of(which), exp.traj.sample, exp.traj.cond, keys)
      )

    return Replay(dist, log_prob, nll, velocity)

  def terms(copies, exp, keys, first):
    replay = make_replay(copies, exp, first)
    if updates * epochs > 1 and exp.traj.log_prob.size:
      own = jax.lax.stop_gradient(replay.log_prob('params'))
      own = jnp.where(first, own, exp.traj.log_prob)
      exp = exp.replace(traj=exp.traj.replace(log_prob=own))
    out = {}
    for label, (objective, weight) in objectives.items():
      term, metrics = objective(replay, exp, keys)
      mask = jax.lax.stop_gradient(_expand_mask(term.mask, exp.weight))
      out[label] = term.value, mask, weight, metrics
    return out

  def microbatch_loss(params, state, old, first, exp, keys, totals):
    """Equation (1) restricted to a microbatch, and its metric sums."""
    copies = {name: full(p, state) for name, p in state.refs.items()}
    copies |= dict(old=full(old, state), params=full(params, state))
    loss, sums, peaks = jnp.zeros(()), {}, {}
    for label, (value, mask, weight, metrics) in terms(
      copies, exp, keys, first
    ).items():
      part = jnp.where(mask > 0, value * mask, 0.0).sum() / totals[label]
      loss += weight * part
      sums[f'{label}/loss'] = part
      for name, m in metrics.items():
        m = jnp.where(mask > 0, m, 0.0)
        if name.endswith('_max'):
          peaks[f'{label}/{name}'] = m.max()
        else:
          sums[f'{label}/{name}'] = (m * mask).sum() / totals[label]
    return loss, (sums, peaks)

  def minibatch_step(carry, xs):
    """One optimizer step. xs: Experience and keys of its rows."""
    state, old = carry
    exp, keys, first = xs
    copies = {name: full(p, state) for name, p in state.refs.items()}
    copies |= dict(old=full(old, state), params=full(state.params, state))
    # Masks do not depend on parameters: the compiler drops the networks here.
    totals = {
      label: jnp.maximum(mask.sum(), 1.0)
      for label, (_, mask, _, _) in terms(copies, exp, keys, first).items()
    }
    grad_fn = jax.grad(microbatch_loss, has_aux=True)

    def accumulate(carry, xs):
      grads, sums, peaks = carry
      g, (s, p) = grad_fn(state.params, state, old, first, *xs, totals)
      grads, sums = jax.tree.map(jnp.add, (grads, sums), (g, s))
      return (grads, sums, jax.tree.map(jnp.maximum, peaks, p)), None

    pieces = (_cut(exp, microbatches), _cut(keys, microbatches))
    shapes = jax.eval_shape(
      lambda s, x: grad_fn(s.params, s, old, first, *x, totals),
      state,
      jax.tree.map(lambda a: a[0], pieces),
    )
    start = (shapes[0], *shapes[1])
    start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), start)
    (grads, sums, peaks), _ = _fold(accumulate, start, pieces)

    norm = optax.global_norm(grads)
    deltas, opt_state = tx.update(grads, state.opt_state, state.params)
    update_norm = optax.global_norm(deltas)
    finite = jnp.isfinite(norm) & jnp.isfinite(update_norm)
    params = optax.apply_updates(state.params, deltas)
    refs = dict(state.refs)
    if ema_decay:
      refs['ema'] = optax.incremental_update(
        params, state.refs['ema'], 1.0 - ema_decay
      )
    new = state.replace(params=params, opt_state=opt_state, refs=refs)
    new = tree.where(finite, new, state)
    bad = 1 - finite.astype(jnp.int32)
    new = new.replace(
      skipped=state.skipped + bad,
      skipped_in_a_row=(state.skipped_in_a_row + 1) * bad,
    )
    metrics = {
      **sums,
      'optim/grad_norm': norm,
      'optim/update_norm': update_norm,
    }
    return (new, old), (metrics, peaks)

  def update(state: TrainState, exp: Experience, key: Array):
    b = exp.weight.shape[0]
    if error := geometry_error(b, updates, microbatches):
      raise ConfigError(error)
    key = jax.random.fold_in(rng.stream_keys(key, 'update'), state.step)
    order_key = rng.stream_keys(key, 'order')
    row_keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(b))
    old = state.params
    if updates * epochs > 1 and exp.traj.log_prob.size:
      exp = exp.replace(traj=rescore(state, exp))
    logs = []
    carry = (state, old)
    for epoch in range(epochs):
      order = jnp.arange(b)
      if updates > 1:
        order = jax.random.permutation(jax.random.fold_in(order_key, epoch), b)
      keys = rng.step_keys(row_keys, epoch)
      xs = jax.tree.map(lambda a, o=order: a[o], (exp, keys))
      first = (jnp.arange(updates) == 0) & (epoch == 0)
      carry, log = _fold(minibatch_step, carry, (*_cut(xs, updates), first))
      logs.append(log)
    sums, peaks = jax.tree.map(lambda *x: jnp.concatenate(x), *logs)
    state = carry[0].replace(step=state.step + 1)
    metrics = jax.tree.map(jnp.mean, sums) | jax.tree.map(jnp.max, peaks)
    metrics['optim/skipped'] = state.skipped
    metrics['optim/skipped_in_a_row'] = state.skipped_in_a_row
    return state, metrics

  def rescore(state: TrainState, exp: Experience) -> Trajectory:
    """Old log-probs by this program, at the microbatch geometry."""

    def one(_, piece):
      replay = make_replay(dict(params=full(state.params, state)), piece)
      return (), replay.log_prob('params')

    _, log_prob = _fold(one, (), _cut(exp, updates * microbatches))
    return exp.traj.replace(
      log_prob=jax.lax.stop_gradient(log_prob.reshape(exp.traj.log_prob.shape))
    )

  def fused(state, batch, key):
    state, exp, collected = collect(state, batch, key)
    state, updated = update(state, exp, key)
    return state, {**collected, **updated}

  def learn(state, traj, outs, key):
    state, exp, collected = judge(state, traj, outs)
    state, updated = update(state, exp, key)
    return state, {**collected, **updated}

  return Step(
    collect,
    update,
    jax.jit(fused, donate_argnums=0),
    jax.jit(sample),
    jax.jit(learn, donate_argnums=0),
  )
