"""Networks trained on labels, with the surface of a policy.

The same step trains them: the rollout is data (`rollout.data_rollout`), a
row's `cond` holds the labels, `nll` is their negative log-likelihood and
`correct` the verdict of an evaluation. They choose nothing, so what needs
decisions (sampling, policy gradients, KL) refuses in one sentence.
"""

import jax.numpy as jnp

from gen_rl.build import ConfigError
from gen_rl.models import detector as detector_lib
from gen_rl.types import Array, Params, Policy, PyTree


def _refuse(*_, **__):
  raise ConfigError(
    'this policy labels pictures and samples nothing: it goes with a rollout '
    'of data (rollout.name="shapes_scenes") and the objective "nll"'
  )


def detector(net: detector_lib.Detector) -> Policy:
  """An object detector: x are pictures in [-1, 1], cond["scene"] the labels.

  Args:
    net: of `models.detector`.
  """

  def decode(params: Params, latent: Array) -> Array:
    del params
    return jnp.clip((latent + 1.0) / 2.0, 0.0, 1.0)

  def nll(params: Params, x: Array, cond: PyTree, keys: Array) -> Array:
    del keys
    maps = net.apply(params, decode(params, x))
    return detector_lib.nll(maps, cond['scene'])

  def correct(params: Params, x: Array, cond: PyTree) -> Array:
    found = detector_lib.detect(net, params, decode(params, x))
    return detector_lib.exact(found, cond['scene'])

  return Policy(
    net.init, _refuse, _refuse, nll, decode, correct=correct, axes=net.axes
  )
