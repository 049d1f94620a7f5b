r"""Rewards that are trained against the policy: how real does a picture look?

Adv-GRPO (arXiv:2511.20256). `adversarial`: over features f of a picture, f_c of
the whole and f_p of patches, a small head h learns to tell real pictures from
samples,

  (1) L = 1/2 (relu(1 - h(f_c^real)) + relu(1 + h(f_c^fake)))
          + w (the same, mean over patches) / 2
  (2) R = (1 - w) h(f_c) + w mean_p h(f_p)

It trains on every rollout, after that was scored; a group is compared by one
head, so its drift does not matter, but scores of different updates are not
comparable. The reference code trains the head on nine rollouts of ten and the
policy on the tenth, which is config.policy_every=10: by default the ratio is
that of the two learning rates.

The paper's features are DINOv2's, frozen, and 64 patches drawn anew, where
here all count. Those of the small ShapesWorld detector hardly see what makes a
picture unreal (a head alone cannot tell renders from renders with noise of
deviation 0.1), so they are trained with the head unless `frozen` says
otherwise.

`adversarial_preference`: a preference model s(x, c), whose last layer learns to
prefer real pictures of the same prompt to samples,

  (3) L = -log sigmoid(scale (s(x_real, c) - s(x_fake, c))),   R = s(x, c)

where its mean of samples is above that of real pictures (`trigger`), and the
policy waits; else the policy moves, and the model is left as it is. Metric
`learner/LABEL/turn` is the share of minibatches that were the model's: at 1 the
policy starves.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gen_rl import build, rewards
from gen_rl.build import ConfigError
from gen_rl.fields import Count, NonNegative, Positive
from gen_rl.measures import features as features_lib
from gen_rl.rewards import inputs as inputs_lib
from gen_rl.rewards import pixels
from gen_rl.types import (
  Array,
  Experience,
  Learner,
  Metrics,
  Params,
  PyTree,
  Replay,
  Reward,
  RewardInputs,
  RewardOut,
  RowKeys,
  Term,
  Trajectory,
)
from gen_rl.utils import tree


def adversarial(
  features: Mapping[str, Any] | str = 'shapes_detector',
  width: Count = 32,
  patch_weight: NonNegative = 0.3,
  frozen: bool = False,
) -> Reward:
  """Score (2) of a head on the features of a network.

  Args:
    features: spec of a function of `measures.features`.
    width: of the head's hidden layer.
    patch_weight: w.
    frozen: only the head is trained, not the features.

  Returns:
    A Reward with a learner; parts `picture` and `patches`.
  """
  net = build.build(features_lib, features)
  loaded = net.params
  image = jax.ShapeDtypeStruct((1, 24, 24, 3), jnp.float32)
  size = jax.eval_shape(net.look, loaded, image)[0].shape[-1]

  def init(key: Array) -> Params:
    up, down = jax.random.split(key)
    return dict(
      trunk={} if frozen else jax.tree.map(jnp.asarray, loaded),
      up=jax.random.normal(up, (size, width)) * (2 / size) ** 0.5,
      up_bias=jnp.zeros(width),
      down=jax.random.normal(down, (width,)) / width**0.5,
      down_bias=jnp.zeros(()),
    )

  def head(params: Params, features: Array) -> Array:
    """[... d] -> [...]; features are brought to a mean square of 1."""
    square = jnp.mean(jnp.square(features), -1, keepdims=True)
    features = features * jax.lax.rsqrt(square + 1e-6)
    hidden = jax.nn.gelu(features @ params['up'] + params['up_bias'])
    return hidden @ params['down'] + params['down_bias']

  def both(whole: PyTree, media: Array) -> tuple[Array, Array]:
    """h(f_c) [b] and h(f_p) [b patches]."""
    held, params = whole
    whole, places = net.look(held if frozen else params['trunk'], media)
    return head(params, whole), head(params, places)

  def reality(
    whole: PyTree, traj: Trajectory, media: Array
  ) -> tuple[Array, Array]:
    del traj
    return both(whole, media)

  def loss(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    del keys
    picture, patches = (
      jax.nn.relu(1.0 - is_real) + jax.nn.relu(1.0 + is_fake)
      for is_real, is_fake in zip(
        replay.ask('self', 'reality', exp.shown.real),
        replay.ask('self', 'reality', exp.shown.fake),
        strict=True,
      )
    )
    value = (picture + patch_weight * patches.mean(1)) / 2
    return Term(value[:, None], exp.shown.mask[:, None], every_row=True), {}

  def score(params, inputs: RewardInputs, key: Array) -> RewardOut:
    del key
    pictures = pixels.shown(inputs)
    finite = jnp.isfinite(pictures).all((1, 2, 3))
    media = jnp.where(finite[:, None, None, None], pictures, 0.0)
    picture, patches = both(params, media)
    patches = patches.mean(1)
    value = (1.0 - patch_weight) * picture + patch_weight * patches
    return RewardOut(value, dict(picture=picture, patches=patches), finite)

  learner = Learner(init, loss, dict(reality=reality), shown=True)
  return Reward(
    'adversarial', loaded, score, differentiable=True, learner=learner
  )


def adversarial_preference(
  reward: Mapping[str, Any],
  trained: str = '',
  scale: Positive = 1.0,
  trigger: bool = True,
) -> Reward:
  """The score of another reward, part of whose parameters learn by (3).

  Args:
    reward: spec of the preference model, a reward on the device.
    trained: regexp of its parameters that learn, '' for all: of CLIP's, for
      example, "vision.*layers_23".
    scale: of its scores in (3), per unit of reward.
    trigger: the model and the policy take turns, the model where it likes
      samples better than real pictures, on the mean of a minibatch; False: both
      learn from every one.

  Returns:
    A Reward with a learner; parts and validity are those of `reward`.

  Raises:
    ConfigError: the reward is not on the device, is trained itself, compares
      rows, or has no such parameters.
  """
  inner = build.build(rewards, reward)
  if inner.where != 'device' or inner.learner or inner.called_on != 'rows':
    raise ConfigError(
      f'adversarial_preference: {inner.name} cannot be trained; the preference '
      'model has to be a reward on the device that scores one picture at a '
      'time and is not trained itself'
    )
  if not jax.tree.leaves(inner.params):
    raise ConfigError(
      f'adversarial_preference: {inner.name} has no parameters to train'
    )
  taught, held = tree.split(inner.params, trained)

  def params_of(whole: PyTree) -> Params:
    return tree.merge(*whole)

  def prefers(
    whole: PyTree, traj: Trajectory, inputs: RewardInputs, keys: Array
  ) -> Array:
    del traj
    # Rows of a part of a batch may be of any prompts.
    alone = inputs.replace(group_size=1)
    return inner.score(params_of(whole), alone, keys).score

  def loss(
    replay: Replay, exp: Experience, keys: RowKeys
  ) -> tuple[Term, Metrics]:
    inputs = inputs_lib.joined(exp.inputs, exp.traj)
    real, fake = (
      replay.ask(
        'self', 'prefers', inputs.replace(media=media, said=()), keys.own
      )
      for media in (exp.shown.real, exp.shown.fake)
    )
    lead = jnp.where(exp.shown.mask > 0, real - fake, 0.0)
    value = jax.nn.softplus(-scale * lead)
    metrics = dict(lead=lead[:, None])
    return Term(
      value[:, None], exp.shown.mask[:, None], every_row=True
    ), metrics

  def score(params, inputs: RewardInputs, key: Array) -> RewardOut:
    return inner.score(params_of(params), inputs, key)

  learner = Learner(
    lambda key: jax.tree.map(jnp.asarray, taught), loss, dict(prefers=prefers),
    shown=True,
    turn='lead' if trigger else '',
  )  # fmt: skip
  return inner._replace(
    name='adversarial_preference', params=held, score=score, learner=learner
  )
