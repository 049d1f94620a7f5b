"""The one step: roll out, score, compare within groups, update.

  collect(state, batch, key)  -> (state, Experience, metrics)
  update(state, experience, key) -> (state, metrics)
  train_step = jit(update o collect), with the state donated

Host rewards cut the same functions in other places: `sample` (rollout and
device rewards, jitted), scoring on the host, `learn` (advantage and update,
jitted). Nothing else differs, and the results agree.

The policy that samples is the one trained, or the copy of its parameters
named `behaviour`, which follows it by the schedule of its copy.

The loss of a minibatch is

  L = sum_j w_j  sum_bk(value_j a_j) / max(sum_b n_j, 1)                 (1)

with a_j and n_j what `aggregate` makes of the term's mask times the row weight
(the mask itself and its sum: a mean over decisions). The row weight is that of
the advantage, or 1 for a term that counts every row, and always 0 for a row
that was not scored or holds a number that is not finite: nothing of such a row
reaches a gradient. The denominators are those
of the whole minibatch, over all devices and microbatches, so gradients add up
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

from gen_rl import aggregate as aggregate_lib
from gen_rl import critics as critics_lib
from gen_rl import minibatch, sharding
from gen_rl import replay as replay_lib
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
  RewardInputs,
  RewardOut,
  RowKeys,
  Rows,
  Trajectory,
)
from gen_rl.utils import rng, tree

View = Callable[[Rows], tuple[PyTree, PyTree]]  # of data.pictures


class Step(NamedTuple):
  """The pieces, unjitted, and the compositions, jitted."""

  collect: Callable[..., tuple[TrainState, Experience, Metrics]]
  update: Callable[..., tuple[TrainState, Metrics]]
  train_step: Callable[..., tuple[TrainState, Metrics]]
  sample: Callable[..., tuple[Trajectory, RewardInputs, dict[str, RewardOut]]]
  learn: Callable[..., tuple[TrainState, Metrics]]


def make(
  policy: Policy,
  objectives: Mapping[str, tuple[Objective, float]],
  tx: optax.GradientTransformation,
  *,
  rollout: Callable[..., Trajectory] | None = None,
  rewards: combine.Weighted | None = None,
  monitors: combine.Weighted | None = None,
  advantage: Advantage | None = None,
  group_size: int = 1,
  rollout_chunks: int = 1,
  microbatches: int = 1,
  updates: int = 1,
  epochs: int = 1,
  ema_decay: float | Callable[[Array], Array] = 0.0,
  copies: Mapping[str, Callable[[Array], Array]] | None = None,
  behaviour: str = 'params',
  whole_groups: bool = False,
  aggregate: aggregate_lib.Aggregator = aggregate_lib.token_mean,
  critic_tx: optax.GradientTransformation | None = None,
  reals: View | None = None,
  view: View | None = None,
  layout: sharding.Layout | None = None,
) -> Step:
  """Composes the step.

  Args:
    policy: what is trained.
    objectives: {label: (objective, weight)}.
    tx: the optimizer.
    rollout: (params, rows, step) -> Trajectory; default: the policy's own.
    rewards: {label: (Reward, weight)}; None for data batches, which get
      advantage 0 and weight 1.
    monitors: {label: (Reward, weight)} scored beside the rewards and logged,
      not trained on; the weights say nothing.
    advantage: turns scores into advantages; goes with `rewards`.
    group_size: G, samples per prompt.
    rollout_chunks: parts the rows of a rollout are sampled and decoded in, one
      after the other, to save memory.
    microbatches: gradient accumulation inside one optimizer step.
    updates: optimizer steps (minibatches) per pass over a rollout.
    epochs: passes over a rollout.
    ema_decay: of refs["ema"], per optimizer step, or a function of how many
      there have been, this one included; 0 keeps no average.
    copies: {name: step -> d}: after each step, refs[name] becomes
      d refs[name] + (1 - d) params.
    behaviour: which parameters sample, "params" or a name in `refs`.
    whole_groups: minibatches hold whole groups, for objectives that compare
      their rows.
    aggregate: how values become a loss, a function of `gen_rl.aggregate`.
    critic_tx: optimizer of the rewards that are trained too (critics).
    reals: rows -> (latents, cond), a function of `data.pictures`: what critics
      learn to tell from samples.
    view: what the policy is shown of the rows, see `rollout.make_rows`.
    layout: where rows and parameters live; None: all on one device.

  Returns:
    The Step. `batch` is what the pipeline yields, `key` the run's root key.

  Raises:
    ConfigError: rewards without an advantage, or the other way round; a
      step-wise advantage or a critic without what it needs; monitors without
      rewards, or with a label of theirs.
  """
  if (rewards is None) != (advantage is None):
    raise ConfigError(
      'rewards and an advantage go together: a config has both, or neither '
      '(training on data)'
    )
  monitors = dict(monitors or {})
  if monitors and rewards is None:
    raise ConfigError('monitors are scored beside rewards, and there are none')
  if both := sorted(set(monitors) & set(rewards or {})):
    raise ConfigError(
      f'{", ".join(both)}: a reward and a monitor need labels of their own'
    )
  rollout = rollout or rollout_lib.policy_rollout(policy)
  device_rewards, host_rewards = combine.split(rewards or {})
  device_monitors, host_monitors = combine.split(monitors)
  stepwise = advantage is not None and advantage.stepwise
  if stepwise and (policy.complete is None or host_rewards):
    raise ConfigError(
      'this advantage scores every decision: it goes with a policy that can '
      'finish a sample without noise, and with rewards on the device'
    )
  critics = combine.critics(device_rewards)
  on_host = host_rewards | host_monitors
  if critics and (reals is None or on_host or critic_tx is None):
    raise ConfigError(
      f'the reward {", ".join(critics)} is trained: it needs critic.reals, and '
      'rewards and monitors on the device only'
    )
  reward_weights = combine.weights({**device_rewards, **host_rewards})
  unit = group_size if whole_groups else 1
  # Where the parameters that are updated may not be those that sampled.
  recompute = updates * epochs > 1 or behaviour != 'params'

  layout = layout or sharding.one_device()
  shard, place, near = layout.rows, layout.constrain, layout.near
  fold = functools.partial(minibatch.fold, platform=layout.platform)

  def make_rows(
    state: TrainState, batch: Mapping[str, Any], key: Array
  ) -> Rows:
    return shard(
      rollout_lib.make_rows(batch, group_size, key, state.step, view)
    )

  def cut(x: PyTree, parts: int) -> PyTree:
    """Pieces of rows, each of them over all devices."""
    return shard(minibatch.cut(x, parts, unit), 1)

  def full(params: Params, state: TrainState) -> Params:
    return tree.merge(params, state.frozen['policy'])

  def reward_params(state: TrainState) -> dict[str, Params]:
    trained = {
      label: (state.frozen['rewards'][label], state.aux[label]['params'])
      for label in critics
    }
    return {**state.frozen['rewards'], **trained}

  def sampling(state: TrainState) -> Params:
    return (
      state.params if behaviour == 'params' else near(state).refs[behaviour]
    )

  def generate(
    params: Params, rows: Rows, step: Array
  ) -> tuple[Trajectory, PyTree, Array | None]:
    """(trajectories, media, samples finished from every decision)."""
    traj = jax.lax.stop_gradient(rollout(params, rows, step))
    if rewards is None:
      return traj, (), None
    media = policy.decode(params, traj.sample)
    if not stepwise:
      return traj, media, None
    done = policy.complete(params, rows, step, traj)  # [b k ...]
    return traj, media, jax.lax.stop_gradient(done)

  def sample(
    state: TrainState, batch: Mapping[str, Any], key: Array
  ) -> tuple[Trajectory, RewardInputs, dict[str, RewardOut]]:
    rows = make_rows(state, batch, key)
    params = full(sampling(state), state)
    if rollout_chunks == 1:
      traj, media, done = generate(params, rows, state.step)
    else:
      _, drawn = fold(
        lambda _, rows: ((), generate(params, rows, state.step)),
        (),
        shard(minibatch.cut(rows, rollout_chunks), 1),
      )
      traj, media, done = shard(minibatch.join(drawn))
    if rewards is None:
      return traj, RewardInputs((), rows.info, group_size), {}
    inputs = RewardInputs(media, rows.info, group_size)
    keys = rng.stream_keys(rows.keys, 'reward')
    outs = evaluate.evaluate(
      device_rewards | device_monitors, inputs, keys, reward_params(state)
    )
    if stepwise:
      before = evaluate.before(
        device_rewards,
        inputs,
        functools.partial(policy.decode, params),
        done,
        keys,
        reward_params(state),
      )
      outs = {
        label: out.replace(before=before.get(label))
        for label, out in outs.items()
      }
    return traj, inputs, outs

  def judge(
    state: TrainState,
    traj: Trajectory,
    info: Mapping[str, Array],
    outs: Mapping[str, RewardOut],
  ) -> tuple[TrainState, Experience, Metrics]:
    b = traj.group.shape[0]
    fine = tree.finite_rows(traj, b)
    if advantage is None:
      out = RewardOut(jnp.zeros(b), {}, fine)
      traj = tree.zero_rows(traj, fine)
      adv, weight = jnp.zeros((b, 1)), fine.astype(jnp.float32)
      return state, Experience(traj, adv, weight, out, info), {}
    watched = {label: outs[label] for label in monitors}
    scored = {
      label: x.replace(valid=x.valid & fine)
      for label, x in outs.items()
      if label not in monitors
    }
    out = combine.merge(scored, reward_weights)
    # 0 * NaN is NaN: a backward pass must not see the row at all.
    traj = tree.zero_rows(traj, out.valid)
    adv, weight, adv_state, metrics = advantage.update(
      out, traj.group, state.adv_state
    )
    watched = combine.watch(watched, adv, out.valid, group_size)
    metrics = {**combine.summarize(out, scored), **metrics, **watched}
    state = state.replace(adv_state=adv_state)
    return state, Experience(traj, adv, weight, out, info), metrics

  def collect(state, batch, key):
    traj, inputs, outs = sample(state, batch, key)
    state, exp, metrics = judge(state, traj, dict(inputs.info), outs)
    if critics:
      rows = make_rows(state, batch, key)
      real = rollout_lib.media_of(reals(rows)[0], inputs.media)
      state, trained = critics_lib.step(
        critics,
        critic_tx,
        state,
        real,
        inputs.media,
        rows.keys,
        exp.rewards.valid,
      )
      metrics = {**metrics, **trained}
    return state, exp, metrics

  def scorer(state: TrainState) -> Callable[..., RewardOut] | None:
    """Rewards as a differentiable function of samples, if they all are."""
    used = [reward for reward, _ in device_rewards.values()]
    if not used or host_rewards or not all(r.differentiable for r in used):
      return None

    def score(params, samples, info, keys):
      # Where groups are cut, every row is a group: a reward that reads a prompt
      # once for its group must not read another's.
      inputs = RewardInputs(policy.decode(params, samples), info, unit)
      outs = evaluate.evaluate(
        device_rewards, inputs, keys, reward_params(state)
      )
      return combine.merge(outs, reward_weights)

    return score

  def terms(state, copies, exp, keys, first):
    replay = replay_lib.make(policy, copies, exp, first, scorer(state))
    if recompute and exp.traj.log_prob.size:
      own = jax.lax.stop_gradient(replay.log_prob('params'))
      own = jnp.where(first, own, exp.traj.log_prob)
      exp = exp.replace(traj=exp.traj.replace(log_prob=own))
    out = {}
    for label, (objective, weight) in objectives.items():
      term, metrics = objective(replay, exp, keys)
      valid = exp.rewards.valid.astype(jnp.float32)
      rows = valid if term.every_row else exp.weight * valid
      mask = jax.lax.stop_gradient(term.mask * rows[:, None])
      said = term.mask.sum(-1).mean()  # whatever became of the rows
      out[label] = term.value, mask, weight, metrics, said
    return out

  def microbatch_loss(params, state, old, first, exp, keys, totals):
    """Equation (1) restricted to a microbatch, and its metric sums."""
    copies = {k: full(p, state) for k, p in near(state).refs.items()}
    copies |= dict(old=full(old, state), params=full(params, state))
    loss, sums, peaks = jnp.zeros(()), {}, {}
    for label, (value, mask, weight, metrics, _) in terms(
      state, copies, exp, keys, first
    ).items():
      part, means, tops = aggregate_lib.reduce(
        aggregate, value, mask, metrics, totals[label]
      )
      loss += weight * part
      sums |= {f'{label}/{k}': x for k, x in ({'loss': part} | means).items()}
      peaks |= {f'{label}/{k}': x for k, x in tops.items()}
    return loss, (sums, peaks)

  def minibatch_step(carry, xs):
    """One optimizer step. xs: Experience and keys of its rows, number."""
    state, old = carry
    exp, keys, number = xs
    first = (number == 0) & (behaviour == 'params')
    copies = {k: full(p, state) for k, p in near(state).refs.items()}
    copies |= dict(old=full(old, state), params=full(state.params, state))
    # Masks do not depend on parameters: the compiler drops the networks here.
    whole = terms(state, copies, exp, keys, first)
    totals = {
      label: aggregate_lib.totals(aggregate, mask)
      for label, (_, mask, *_) in whole.items()
    }
    grad_fn = jax.grad(microbatch_loss, has_aux=True)
    pieces = cut(exp, microbatches), cut(keys, microbatches)
    grad, shapes, _ = minibatch.trace(
      lambda *piece: grad_fn(state.params, state, old, first, *piece, totals),
      *jax.tree.map(lambda a: a[0], pieces),
    )

    def accumulate(carry, piece):
      grads, sums, peaks = carry
      g, (s, p) = grad(*piece)
      grads, sums = jax.tree.map(jnp.add, (grads, sums), (g, s))
      grads = place(state.replace(params=grads)).params
      return (grads, sums, jax.tree.map(jnp.maximum, peaks, p)), None

    start = (shapes[0], *shapes[1])
    start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), start)
    (grads, sums, peaks), _ = fold(accumulate, start, pieces)

    norm = optax.tree.norm(grads)
    if layout.offload:  # not before its gradients are known
      state = near(jax.lax.optimization_barrier((state, norm))[0])
    deltas, opt_state = tx.update(grads, state.opt_state, state.params)
    update_norm = optax.tree.norm(deltas)
    finite = jnp.isfinite(norm) & jnp.isfinite(update_norm)
    params = optax.apply_updates(state.params, deltas)
    refs = dict(state.refs)
    if ema_decay:
      decay = ema_decay
      if callable(ema_decay):
        decay = ema_decay(state.step * updates * epochs + number + 1)
      refs['ema'] = optax.incremental_update(
        params, state.refs['ema'], 1.0 - decay
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
      **{f'{label}/decisions': said for label, (*_, said) in whole.items()},
      'optim/grad_norm': norm,
      'optim/update_norm': update_norm,
    }
    return (layout.far(place(new)), old), (metrics, peaks)

  def update(state: TrainState, exp: Experience, key: Array):
    b = exp.weight.shape[0]
    if error := minibatch.geometry_error(b, updates, microbatches, unit):
      raise ConfigError(error)
    key = jax.random.fold_in(rng.stream_keys(key, 'update'), state.step)
    order_key = rng.stream_keys(key, 'order')
    fold_in = jax.vmap(jax.random.fold_in, (None, 0))
    group_key = rng.stream_keys(key, 'group')
    row_keys = RowKeys(
      fold_in(key, jnp.arange(b)), fold_in(group_key, exp.traj.group)
    )
    old = sampling(state)
    if recompute and exp.traj.log_prob.size:
      exp = exp.replace(traj=rescore(full(old, state), exp))
    logs = []
    carry = (state, old)
    for epoch in range(epochs):
      keys = RowKeys(*(rng.step_keys(k, epoch) for k in row_keys))
      xs = exp, keys
      if updates > 1:
        shuffled = jax.random.permutation(
          jax.random.fold_in(order_key, epoch), b // unit
        )
        order = (unit * shuffled[:, None] + jnp.arange(unit)).reshape(-1)
        xs = jax.tree.map(lambda a, o=order: a[o], xs)
      numbers = epoch * updates + jnp.arange(updates)
      carry, log = fold(minibatch_step, carry, (*cut(xs, updates), numbers))
      logs.append(log)
    sums, peaks = jax.tree.map(lambda *x: jnp.concatenate(x), *logs)
    state = carry[0]
    for name, decay in (copies or {}).items():
      moved = optax.incremental_update(
        state.params, state.refs[name], 1.0 - decay(state.step)
      )
      state = state.replace(refs={**state.refs, name: moved})
    state = state.replace(step=state.step + 1)
    metrics = jax.tree.map(jnp.mean, sums) | jax.tree.map(jnp.max, peaks)
    metrics['optim/skipped'] = state.skipped
    metrics['optim/skipped_in_a_row'] = state.skipped_in_a_row
    return state, metrics

  def rescore(params: Params, exp: Experience) -> Trajectory:
    """Old log-probs by this program, at the microbatch geometry."""

    def one(_, piece):
      replay = replay_lib.make(policy, dict(params=params), piece)
      return (), replay.log_prob('params')

    _, log_prob = fold(one, (), cut(exp, updates * microbatches))
    return exp.traj.replace(
      log_prob=jax.lax.stop_gradient(shard(minibatch.join(log_prob, unit)))
    )

  def fused(state, batch, key):
    state, exp, collected = collect(state, batch, key)
    state, updated = update(state, exp, key)
    return state, {**collected, **updated}

  def learn(state, traj, info, outs, key):
    state, exp, collected = judge(state, traj, dict(info), outs)
    state, updated = update(state, exp, key)
    return state, {**collected, **updated}

  return Step(
    collect,
    update,
    jax.jit(fused, donate_argnums=0),
    jax.jit(sample),
    jax.jit(learn, donate_argnums=0),
  )
