r"""A reward that is trained against the policy: how real does a picture look?

Adv-GRPO (arXiv:2511.20256): over features f of a picture, patches f_p and
their mean f_c, a small head h learns to tell real pictures from samples,

  (1) L = 1/2 (relu(1 - h(f_c^real)) + relu(1 + h(f_c^fake)))
          + w (the same, mean over patches) / 2
  (2) R = (1 - w) h(f_c) + w mean_p h(f_p)

It trains on every rollout, after that was scored; a group is compared by one
head, so its drift does not matter, but scores of different updates are not
comparable. The reference code trains the head on nine rollouts of ten and the
policy on the tenth: here the ratio is that of the two learning rates.

The paper's features are DINOv2's, frozen. Those of the small ShapesWorld
detector hardly see what makes a picture unreal (a head alone cannot tell
renders from renders with noise of deviation 0.1), so they are trained with the
head unless `frozen` says otherwise.
"""

import jax
import jax.numpy as jnp

from gen_rl.fields import Count, NonNegative
from gen_rl.models import detector
from gen_rl.models.files import weights as weights_lib
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


def adversarial(
  weights: str = 'asset:shapes_detector',
  width: Count = 32,
  patch_weight: NonNegative = 0.3,
  frozen: bool = False,
) -> Reward:
  """Score (2) of a head on the features of the ShapesWorld detector.

  Args:
    weights: of the detector, a safetensors file or "asset:NAME".
    width: of the head's hidden layer.
    patch_weight: w.
    frozen: only the head is trained, not the features.

  Returns:
    A Reward with a learner; parts `picture` and `patches`.
  """
  net = detector.shapes_detector()
  like = jax.eval_shape(net.init, jax.random.key(0))
  loaded, _ = weights_lib.load(weights_lib.find(weights), like)
  image = jax.ShapeDtypeStruct((1, 24, 24, 3), jnp.float32)
  size = jax.eval_shape(net.features, like, image).shape[-1]

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
    features = net.features(held if frozen else params['trunk'], media)
    features = features.reshape(features.shape[0], -1, size)
    return head(params, features.mean(1)), head(params, features)

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
