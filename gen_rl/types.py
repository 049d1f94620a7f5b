"""The types every module shares, and nothing else.

Axis letters, used in every shape comment and signature:

  b  rows of a batch, P prompts x G samples, prompt-major (row = p * G + g);
     rows are never shuffled before group statistics are taken
  k  decisions per row: trained denoising steps, or tokens
  h w c  image height, width, channels        l  text positions
  d  model width      n  attention heads      v  vocabulary

Pytree fields carry a plain `Array` and a shape comment: shape-typed fields
break vmap, scan and eval_shape. Pure functions carry jaxtyping shapes, which
cost nothing in a run and are checked in the tests (tests/conftest.py).
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

from flax import struct
import jax
import numpy as np

from gen_rl import media as media_lib

Array = jax.Array
AnyArray = jax.Array | np.ndarray  # of what also takes numpy arrays
PyTree = Any
Params = PyTree
# ((regular expression on parameter names, names of the last dimensions), ...)
Axes = Sequence[tuple[str, tuple[str | None, ...]]]
Metrics = dict[str, Array]


class Dist(Protocol):
  """A distribution over the k decisions of each row, as a pytree."""

  def sample(self, key: Array) -> Array:
    """Actions [b k ...]; `key` is one key, or per-row keys [b]."""
    ...

  def log_prob(self, actions: Array) -> Array:
    """Float32 [b k]; event dimensions are reduced (the class says how)."""
    ...

  def kl(self, other: 'Dist') -> Array:
    """KL(self || other), float32 [b k]."""
    ...

  def entropy(self) -> Array:
    """Differential or Shannon entropy, float32 [b k]."""
    ...


class Trajectory(struct.PyTreeNode):
  """What a rollout stored: enough to replay every trained decision."""

  cond: PyTree  # [b ...]    what the policy saw: prompt tokens, source images
  states: PyTree  # [b k ...]  input of each decision; () for token policies
  actions: Array  # [b k ...]  next latent, or token id
  times: Array  # [b k 2]    (t, t_next); zeros for tokens
  noise: Array  # [b k]      noise level of each decision; zeros for tokens
  log_prob: Array  # [b k]      behaviour policy, float32
  mask: Array  # [b k]      1 where the policy chose and is trained
  sample: Array  # [b ...]    final latent or tokens
  group: Array  # [b]        prompt id, int32
  # [b] share of the steps that took the velocity of one before, where policies
  # do so, see `diffusion.caching`
  reused: PyTree = ()
  # [b] share of the rows of a network's calls that were not computed, as a
  # neighbour's is the same, where there are any, see `policies.branches`
  spared: PyTree = ()


class Noised(struct.PyTreeNode):
  """Samples on the straight path to noise, at k drawn times each."""

  x: Array  # [b k ...]  (1 - t) x0 + t x1
  t: Array  # [b k]
  x0: Array  # [b ...]    the samples
  x1: Array  # [b k ...]  the noise


class RowKeys(NamedTuple):
  """Keys of an update's rows."""

  own: Array  # [b] of the row alone
  group: Array  # [b] shared by the rows of a prompt: paired noise


class Rows(struct.PyTreeNode):
  """What is to be sampled: prompts repeated for the members of their group."""

  cond: PyTree  # [b ...]
  info: dict[str, Array]  # {name: [b ...]}
  group: Array  # [b] prompt id, int32
  keys: Array  # [b] typed keys, one per (seed, step, prompt, member)
  group_keys: Array  # [b] typed keys, one per (seed, step, prompt)
  key: Array  # [] key of this step, for choices all rows share
  media: PyTree = None  # [b h w c] given pictures, for data batches
  member: PyTree = None  # [b] place in the group, int32
  ids: PyTree = None  # [b] prompt id of the source, where `group` is another
  # Neighbours whose `cond` is the same, from row 0 on: G or a part of it, whose
  # prompt a policy may read once. Whoever brings rows into another order sets
  # it to 1; `replace` does where `cond` is another.
  alike: int = struct.field(pytree_node=False, default=1)
  # These are members 0, 1, 2, ... of their group; `replace` says no where one
  # of both is another.
  in_order: bool = struct.field(pytree_node=False, default=False)


def _replaced(rows: Rows, **changes: Any) -> Rows:
  if 'cond' in changes:
    changes = dict(alike=1) | changes
  if 'alike' in changes or 'member' in changes:
    changes = dict(in_order=False) | changes
  return dataclasses.replace(rows, **changes)


# The class statement puts the one of all dataclasses in its place.
Rows.replace = _replaced


class Policy(NamedTuple):
  """Pure functions over explicit parameters, like a GradientTransformation."""

  init: Callable[[Array], Params]  # key -> params
  # (params, Rows, step) -> Trajectory; `step` moves windows and curricula
  rollout: Callable[..., Trajectory]
  # (params, samples) -> media in [0, 1], tokens, or dict(text=, image=) of both
  decode: Callable[..., PyTree]
  # What else it can do, {name: function}: see `gen_rl.capabilities`.
  ops: Mapping[str, Callable[..., Any]] = MappingProxyType({})
  axes: Axes = ()  # of the parameters' dimensions, see sharding.logical_axes
  # (folder of a released model, type of its parameters) -> params, on the host
  load: Callable[[str, str], Params] | None = None
  # (folder, params) -> None: writes what diffusers can load
  save: Callable[[str, Params], None] | None = None
  # (file or folder of adapters, params with new ones) -> params that compute
  # what those of the file do
  adapt: Callable[[str, Params], Params] | None = None


class RewardInputs(struct.PyTreeNode):
  """What a reward may look at: rows, prompt-major groups.

  `rewards.inputs` makes it, for whoever scores. On the device a field that no
  reward reads costs nothing; on the host `said` and `seen` are there for
  rewards that need them (`Reward.needs`), and () for others.
  """

  # [b h w c] float in [0, 1] for images, [b k] int for tokens; of policies that
  # make both dict(text=, image=), which `text` and `image` tell apart.
  media: PyTree
  info: Mapping[str, Array]  # {name: [b ...]} what the prompt asked for
  # Neighbours that are of one prompt: G, or 1 where groups are cut.
  group_size: int = struct.field(pytree_node=False)
  said: PyTree = ()  # [b ...] the policy's own sample: latents or tokens
  seen: PyTree = ()  # {name: [b ...]} what it saw: prompt, "image", features
  ids: PyTree = ()  # [b] int32, prompt ids
  member: PyTree = ()  # [b] int32, place in the group
  # Of rewards on the host alone, numpy arrays, see `Prompts.asked`:
  texts: PyTree = ()  # [b] str, the prompts
  # {name: [b]} of their file
  columns: Mapping[str, np.ndarray] = struct.field(default_factory=dict)

  # As of a NamedTuple: rewards walk through its fields, and change some.
  @property
  def _fields(self) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(self))

  def _replace(self, **changes: Any) -> 'RewardInputs':
    return self.replace(**changes)

  @property
  def image(self) -> Array:
    """Pictures [b h w c], where the policy makes some."""
    return media_lib.image(self.media)

  @property
  def text(self) -> Array:
    """Tokens [b k], where the policy says some."""
    return media_lib.text(self.media)


class RewardOut(struct.PyTreeNode):
  """A scored batch. A row that could not be scored is invalid, never a 0."""

  score: Array  # [b] float32
  parts: dict[str, Array]  # {name: [b]} logged one by one
  valid: Array  # [b] bool; False: left out of group statistics and loss
  # [b k] optional: what each decision earned beside the score, which the last
  # one earns; for advantages of decisions, such as `gae`
  steps: Array | None = None
  # [b k] optional: the score of the row, had it been finished without noise
  # from the state before each decision; NaN where not valid
  before: Array | None = None
  # [b] bool optional: False where the row asks for nothing this reward is for,
  # such as another task; it then counts as 0. None: it is for all rows.
  applies: Array | None = None


class Reward(NamedTuple):
  """`device` rewards are pure and jittable; `host` ones take numpy arrays.

  With a learner, `score` gets (params, the learner's) in place of params.
  """

  name: str
  params: PyTree
  score: Callable[..., RewardOut]  # (params, RewardInputs, key) -> RewardOut
  where: Literal['device', 'host'] = 'device'
  differentiable: bool = False
  learner: 'Learner | None' = None  # its parameters, and how they are trained
  verdict: bool = False  # the score is 1 for right and 0 for wrong
  axes: Axes = ()  # of the parameters' dimensions, as a Policy's; (): none
  # What a call has to hold for a score to mean the same: the row itself, its
  # group, or all rows of a batch.
  called_on: Literal['rows', 'groups', 'batch'] = 'rows'
  tasks: Sequence[str] = ()  # of prompts, that it is for; (): all
  # Of host rewards: what is copied to the host for them
  needs: Sequence[Literal['said', 'seen']] = ()


class Advantage(NamedTuple):
  """(init, update) pair; `state` is part of the TrainState."""

  init: Callable[[], PyTree]
  # (RewardOut, group [b], state) -> (adv [b 1] | [b k], weight [b], state,
  # metrics)
  update: Callable[..., tuple[Array, Array, PyTree, Metrics]]
  stepwise: bool = False  # asks for RewardOut.before
  # Whom it asks for the values of the stored states, 'params' or a learner; ''
  # asks nobody. `update` then takes (..., state, mask [b k], values [b k]).
  values: str = ''
  # Compares several rewards itself, by weights that stay
  mixes: bool = False
  # Leaves out rows that have an advantage, see `advantages.select`
  selects: bool = False


class Experience(struct.PyTreeNode):
  """What `collect` hands to `update`."""

  traj: Trajectory
  adv: Array  # [b 1] | [b k]
  weight: Array  # [b] 0: the advantage says nothing (invalid, or zero)
  rewards: RewardOut
  # What rewards see of the rows, but for what the trajectory holds
  inputs: RewardInputs | None = None
  values: PyTree = ()  # [b k] that the advantage asked for
  # [b k] log-probs as the rollout had them: those of `traj` are recomputed by
  # the update where its parameters may not be those that sampled
  sampled: PyTree = ()
  shown: PyTree = ()  # Shown, for learners that need it


class Shown(struct.PyTreeNode):
  """Samples beside what is real, for those who learn to tell them apart."""

  fake: PyTree  # [b ...] media of the policy, in [0, 1]
  real: PyTree  # [b ...] media of the same prompts
  mask: Array  # [b] 0 where one of the two is not finite


class Replay(NamedTuple):
  """What an objective may ask of the policy; answers are shared.

  `ask(which, op, *args)` is what the capability `op` of the policy (see
  `gen_rl.capabilities`) says of the stored samples with the parameter copy
  `which`: "params" (differentiated), "ref", "old", "ema" (no gradient). It may
  be the label of a learner, too, which has capabilities of its own. In the loss
  of a learner "self" is that learner, differentiated in place of "params". Each
  question is answered once per microbatch, however many objectives ask it.
  """

  ask: Callable[..., Any]
  asked: Callable[[str, str], bool] = lambda which, op: False
  # (samples, keys [b]) -> RewardOut of the device rewards, with gradients
  score: Callable[..., RewardOut] | None = None


class Term(struct.PyTreeNode):
  """An unreduced loss; one place reduces it over the global batch."""

  value: Array  # [b k]
  mask: Array  # [b k]
  # Which rows count. False: those whose advantage says something, as for a
  # policy gradient. True: every valid one, as for a loss that does not ask
  # what a row's advantage is, or to which 0 means something.
  every_row: bool = struct.field(pytree_node=False, default=False)


# (Replay, Experience, RowKeys) -> (Term, {name: [b k] unreduced})
Objective = Callable[[Replay, Experience, RowKeys], tuple[Term, Metrics]]


class Learner(NamedTuple):
  """A network that is trained beside the policy, on the same rollouts."""

  init: Callable[[Array], Params]  # key -> what is trained
  loss: Objective  # asks for what is trained as "self"
  # {capability: ((params, trained), Trajectory, ...) -> answer}
  ops: Mapping[str, Callable[..., Any]]
  # Not trained; of the learner of a reward it is the reward's.
  params: PyTree = ()
  shown: bool = False  # the loss reads Experience.shown
  axes: Axes = ()  # of the dimensions of what is trained, as a Policy's
  compares: bool = False  # the rows of a group, which stay together
  # Of a learner that takes turns with the policy, the metric of its loss whose
  # mean over a minibatch says whose it is: below 0 the learner moves, and the
  # policy waits, else the other way round. '': both always move.
  turn: str = ''
