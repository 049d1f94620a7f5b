"""What a training step is made of, and what follows from it."""

from collections.abc import Callable, Mapping
import dataclasses
import functools

import optax

from gen_rl import aggregate as aggregate_lib
from gen_rl import minibatch, mixers, ramps, sharding
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


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A step's parts; for what each is, see `train_step.make`."""

  policy: Policy
  objectives: Mapping[str, tuple[Objective, float]]
  tx: optax.GradientTransformation
  rollout: Callable[..., Trajectory]
  rewards: combine.Weighted | None
  monitors: combine.Weighted
  advantage: Advantage | None
  group_size: int
  rollout_chunks: int
  microbatches: int
  updates: int
  epochs: int
  ema_decay: float | Callable[[Array], Array]
  copies: Mapping[str, Callable[[Array], Array]]
  behaviour: str
  whole_groups: bool
  aggregate: aggregate_lib.Aggregator
  learners: Mapping[str, Taught]
  mix: mixers.Mixer | None
  # {label: factor of the weight} of rewards, and of objectives
  reward_ramps: Mapping[str, ramps.Ramp]
  objective_ramps: Mapping[str, ramps.Ramp]
  importance_cap: float
  policy_every: int
  reals: View | None
  view: View | None
  layout: sharding.Layout

  def __post_init__(self):
    """Raises ConfigError for parts that do not go together."""
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
    return self.group_size if self.whole_groups else 1

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
