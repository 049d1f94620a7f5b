"""What a training step is made of, and what follows from it."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

import optax

from gen_rl import aggregate as aggregate_lib
from gen_rl import minibatch, mixers, ramps, sharding
from gen_rl import rollout as rollout_lib
from gen_rl.build import ConfigError
from gen_rl.rewards import combine
from gen_rl.train_state import Taught, TrainState
from gen_rl.types import (
  Advantage,
  Array,
  Objective,
  Params,
  Policy,
  PyTree,
  Rows,
  Trajectory,
)
from gen_rl.utils import tree

View = Callable[[Rows], tuple[PyTree, PyTree]]  # of data.pictures


def _none() -> Any:
  """A field that is empty by default."""
  return dataclasses.field(default_factory=dict)


class Pool(NamedTuple):
  """Candidates of a step, of which some become its rows."""

  size: int  # G', of a prompt
  # That draws them cheaply, by the same parameters; None: the step's own draws
  # them, and the chosen ones are not drawn again.
  policy: Policy | None = None
  view: View | None = None  # what it is shown of the rows


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A step's parts.

  Attributes:
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
    learners: {label: what is trained beside the policy}; those of rewards have
      the reward's label.
    mix: how rewards become one score; None: their weighted sum.
    reward_ramps: {label: rollouts done -> factor of its weight}.
    objective_ramps: the same of objectives.
    update_rows: how many rows of a rollout an update takes, see `step.choose`;
      0: all.
    update_members: the same of every group, in place of that.
    importance_cap: largest weight of a decision by how much likelier the
      update finds it than the rollout did; 0 weighs all alike.
    policy_every: minibatches from one optimizer step of the policy to the next.
    reals: rows -> (latents, cond), a function of `data.pictures`: what learners
      that need it tell from samples.
    view: what the policy is shown of the rows, see `rollout.make_rows`.
    pool: more candidates of every prompt, of which the best and the worst are
      the rows of the step, see `step.explore`; None: its rows are drawn alone.
    layout: where rows and parameters live; default: all on one device.

  Raises:
    ConfigError: rewards without an advantage, or the other way round; a
      step-wise advantage, a learner or a pool without what it needs; monitors
      without rewards, or with a label of theirs.
  """

  policy: Policy
  objectives: Mapping[str, tuple[Objective, float]]
  tx: optax.GradientTransformation
  rollout: Callable[..., Trajectory] = None  # type: ignore[assignment]
  rewards: combine.Weighted | None = None
  monitors: combine.Weighted = _none()
  advantage: Advantage | None = None
  group_size: int = 1
  rollout_chunks: int = 1
  microbatches: int = 1
  updates: int = 1
  epochs: int = 1
  ema_decay: float | Callable[[Array], Array] = 0.0
  copies: Mapping[str, Callable[[Array], Array]] = _none()
  behaviour: str = 'params'
  whole_groups: bool = False
  aggregate: aggregate_lib.Aggregator = aggregate_lib.token_mean
  learners: Mapping[str, Taught] = _none()
  mix: mixers.Mixer | None = None
  reward_ramps: Mapping[str, ramps.Ramp] = _none()
  objective_ramps: Mapping[str, ramps.Ramp] = _none()
  update_rows: int = 0
  update_members: int = 0
  importance_cap: float = 0.0
  policy_every: int = 1
  reals: View | None = None
  view: View | None = None
  pool: Pool | None = None
  layout: sharding.Layout = dataclasses.field(
    default_factory=sharding.one_device
  )

  def __post_init__(self):
    """Raises ConfigError for parts that do not go together."""
    if self.rollout is None:
      own = rollout_lib.policy_rollout(self.policy)
      object.__setattr__(self, 'rollout', own)
    if (self.rewards is None) != (self.advantage is None):
      raise ConfigError(
        'rewards and an advantage go together: a config has both, or neither '
        '(training on data)'
      )
    if self.monitors and self.rewards is None:
      raise ConfigError(
        'monitors are scored beside rewards, and there are none'
      )
    if both := sorted(set(self.monitors) & set(self.rewards or {})):
      raise ConfigError(
        f'{", ".join(both)}: a reward and a monitor need labels of their own'
      )
    on_host = self.host_rewards | combine.split(self.monitors)[1]
    if self.stepwise and (
      'complete' not in self.policy.ops or self.host_rewards
    ):
      raise ConfigError(
        'this advantage scores every decision: it goes with a policy that can '
        'finish a sample without noise, and with rewards on the device'
      )
    if self.pool and (
      self.rewards is None
      or self.host_rewards
      or self.pool.size < self.group_size
    ):
      raise ConfigError(
        f'a pool of {self.pool.size} candidates a prompt is ranked by rewards '
        'on the device, and has to hold the group of '
        f'{self.group_size} that is trained on'
        + (
          f'; {", ".join(sorted(self.host_rewards))} is scored on the host'
          if self.host_rewards
          else ''
        )
      )
    shown = [k for k, taught in self.learners.items() if taught.learner.shown]
    if shown and (self.reals is None or on_host):
      raise ConfigError(
        f'{", ".join(shown)} learns what is real: it needs critic.reals, and '
        'rewards and monitors on the device only'
      )
    rewards = {k: reward for k, (reward, _) in self.device_rewards.items()}
    if idle := [
      k for k, x in rewards.items() if x.learner and k not in self.learners
    ]:
      raise ConfigError(
        f'the reward {", ".join(idle)} is trained: it needs an optimizer'
      )

  @functools.cached_property
  def device_rewards(self) -> combine.Weighted:
    """Rewards that are part of the program."""
    return combine.split(self.rewards or {})[0]

  @functools.cached_property
  def host_rewards(self) -> combine.Weighted:
    """Rewards in Python."""
    return combine.split(self.rewards or {})[1]

  @functools.cached_property
  def device_monitors(self) -> combine.Weighted:
    """Monitors that are part of the program."""
    return combine.split(self.monitors)[0]

  def reward_weights(self, done: Array) -> dict[str, float | Array]:
    """{label: weight} of all rewards, after `done` rollouts."""
    rewards = {**self.device_rewards, **self.host_rewards}
    return _moved(combine.weights(rewards), self.reward_ramps, done)

  def moved_objectives(
    self, done: Array
  ) -> dict[str, tuple[Objective, float | Array]]:
    """{label: (objective, weight)}, after `done` rollouts."""
    weights = {label: weight for label, (_, weight) in self.objectives.items()}
    weights = _moved(weights, self.objective_ramps, done)
    return {k: (f, weights[k]) for k, (f, _) in self.objectives.items()}

  @property
  def stepwise(self) -> bool:
    """Whether the advantage scores every decision."""
    return self.advantage is not None and self.advantage.stepwise

  @property
  def unit(self) -> int:
    """Neighbouring rows that minibatches do not separate."""
    if not self.whole_groups:
      return 1
    return self.update_members or self.group_size

  @property
  def recompute(self) -> bool:
    """Whether parameters that are updated may not be those that sampled."""
    return self.updates * self.epochs > 1 or self.behaviour != 'params'

  def left_out(self, metric: str) -> bool:
    """Whether it is NaN at minibatches where nobody takes a step."""
    kind, _, rest = metric.partition('/')
    if kind != 'learner':
      return self.policy_every > 1
    taught = self.learners.get(rest.partition('/')[0])
    return taught is not None and taught.every > 1

  def cut(self, x: PyTree, parts: int) -> PyTree:
    """Pieces [parts b/parts ...] of rows, each of them over all devices."""
    return self.layout.rows(minibatch.cut(x, parts, self.unit), 1)

  def fold(
    self, body: Callable, carry: PyTree, xs: PyTree
  ) -> tuple[PyTree, PyTree]:
    """`minibatch.fold` for the platform of the step."""
    return minibatch.fold(body, carry, xs, platform=self.layout.platform)

  def full(self, params: Params, state: TrainState) -> Params:
    """Trained parameters with the frozen ones beside them."""
    return tree.merge(params, state.frozen['policy'])

  def behaviour_params(self, state: TrainState) -> Params:
    """The trained parameters, or their copy, that sample."""
    if self.behaviour == 'params':
      return state.params
    return self.layout.near(state).refs[self.behaviour]

  def copies_of(
    self, state: TrainState, old: Params, params: Params
  ) -> dict[str, Params]:
    """{name: parameters} an objective may ask for.

    Args:
      state: before the update.
      old: trained parameters that sampled.
      params: trained parameters that are updated.
    """
    refs = self.layout.near(state).refs
    named = {**refs, 'old': old, 'params': params}
    return {name: self.full(p, state) for name, p in named.items()}

  def held(self, state: TrainState, label: str) -> Params:
    """What of a learner is not trained."""
    if label in state.frozen['rewards']:
      return state.frozen['rewards'][label]
    return state.frozen['learners'][label]

  def reward_params(self, state: TrainState) -> dict[str, Params]:
    """{label: parameters} of rewards and monitors; both parts of learners."""
    frozen = state.frozen['rewards']
    trained = {
      label: (frozen[label], state.aux[label]['params'])
      for label in self.learners
      if label in frozen
    }
    return {**frozen, **trained}


def _moved(
  weights: Mapping[str, float], by: Mapping[str, ramps.Ramp], done: Array
) -> dict[str, float | Array]:
  return {k: by[k](done) * w if k in by else w for k, w in weights.items()}
