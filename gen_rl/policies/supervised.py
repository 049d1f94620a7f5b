"""Networks trained on labels, with the surface of a policy.

The same step trains them: the rollout is data (`rollout.data_rollout`), a
row's `cond` holds the labels, `nll` is their negative log-likelihood and
`correct` the verdict of an evaluation. They choose nothing, so what needs
decisions (sampling, policy gradients, KL) refuses in one sentence.
"""

import jax.numpy as jnp

from gen_rl.build import ConfigError
from gen_rl.models import detector as detector_lib
from gen_rl.models import vq
from gen_rl.types import Array, Params, Policy, Rows, Trajectory


def _samples_nothing(*_, **__):
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

  def nll(params: Params, traj: Trajectory, keys: Array) -> Array:
    del keys
    maps = net.apply(params, decode(params, traj.sample))
    return detector_lib.nll(maps, traj.cond['scene'])

  def correct(params: Params, traj: Trajectory) -> Array:
    found = detector_lib.detect(net, params, decode(params, traj.sample))
    return detector_lib.exact(found, traj.cond['scene'])

  ops = dict(nll=nll, correct=correct)
  return Policy(net.init, _samples_nothing, decode, ops, axes=net.axes)


def codec(net: vq.Codec) -> Policy:
  """A codec: x are pictures in [-1, 1], samples are codes.

  Its "greedy" samples are the codes of the pictures that rows show (data.view),
  so an evaluation with eval.sampler="greedy" judges reconstructions.

  Args:
    net: of `models.fsq_codec`.
  """

  def nll(params: Params, traj: Trajectory, keys: Array) -> Array:
    del keys
    return net.loss(params, (traj.sample + 1.0) / 2.0)

  def greedy(params: Params, rows: Rows) -> Array:
    if rows.media is None:
      raise ConfigError(
        'a codec is judged by the pictures it is shown: data.view.name says '
        'which, such as shapes_pictures'
      )
    return net.encode(params, rows.media)

  ops = dict(nll=nll, greedy=greedy)
  return Policy(net.init, _samples_nothing, net.decode, ops, axes=net.axes)
