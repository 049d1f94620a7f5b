"""What a run starts from: parameters, copies of them, and the whole state."""

import re
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import ml_collections
import optax

from gen_rl import between, build, optim, specs, train_state
from gen_rl.models.files import weights
from gen_rl.models.parts import lora
from gen_rl.rewards import combine
from gen_rl.types import Advantage, Params, Policy
from gen_rl.utils import rng, tree


def params(config: ml_collections.ConfigDict, policy: Policy) -> Params:
  """Parameters a run starts from: `config.init` or `config.released`, or drawn.

  With the adapters that `config.lora` asks for, new ones or those of a file.
  """
  key = jax.random.key(config.seed)
  if config.released and not config.init:
    # Full precision where all of them are trained.
    frozen = config.lora.pattern and config.trainable == lora.TRAINABLE
    params = policy.load(
      config.released, config.frozen_dtype if frozen else 'float32'
    )
  elif config.init:
    params = _mixed(config.init, jax.eval_shape(policy.init, key))
  else:
    params = jax.jit(policy.init)(key)
  params = with_adapters(config, params)
  if config.lora.start:
    files = weighted(config.lora.start)
    adapted = [policy.adapt(path, params) for path, _ in files]
    params = lora.mix(adapted, [weight for _, weight in files])
  return params


_PART = re.compile(r'(.+)\*([+-]?(\d+\.?\d*|\.\d+))')


def weighted(said: str) -> list[tuple[str, float]]:
  """[(path, weight)] of 'PATH', whose weight is 1, or 'PATH*0.7,PATH*0.3'."""
  parts = [_PART.fullmatch(part) for part in said.split(',')]
  if not all(parts):
    return [(said, 1.0)]
  return [(part[1], float(part[2])) for part in parts if part]


def _mixed(said: str, like: Params) -> Params:
  """The weighted mean of the files that `config.init` names.

  Of runs that began alike it adds what each has learned, adapters, too, times
  its weight.
  """
  files = [(path, weight) for path, weight in weighted(said) if weight]
  if abs(sum(weight for _, weight in files) - 1) > 1e-6:
    raise build.ConfigError(
      f'config.init={said!r} is a mean of parameters, whose weights have to '
      'add up to 1'
    )
  loaded = [weights.load(weights.find(p), like, cast=True)[0] for p, _ in files]
  if len(files) == 1:
    return jax.tree.map(jnp.asarray, loaded[0])
  return jax.tree.map(
    lambda *xs: sum(w * jnp.asarray(x) for (_, w), x in zip(files, xs)), *loaded
  )


def with_adapters(config: ml_collections.ConfigDict, params: Params) -> Params:
  """Adds the adapters `config.lora` asks for, which change nothing yet.

  What is not trained then is of type `frozen_dtype`.
  """
  if config.lora.pattern:
    key = rng.stream_keys(jax.random.key(config.seed), 'lora')
    drawn = {k: v for k, v in config.lora.items() if k != 'start'}
    params = lora.add(params, **drawn, key=key)
  trained, rest = tree.split(params, config.trainable)
  return tree.merge(
    trained,
    jax.tree.map(lambda x: x.astype(config.frozen_dtype, copy=False), rest),
  )


def shapes(config: ml_collections.ConfigDict, policy: Policy) -> Params:
  """ShapeDtypeStructs of `params`, without a file or memory."""
  drawn = jax.jit(policy.init)  # traced once for all that ask for shapes

  def init():
    return with_adapters(config, drawn(jax.random.key(0)))

  return jax.eval_shape(init)


def copies(config: ml_collections.ConfigDict) -> list[str]:
  """Names of the copies of the parameters that objectives and EMA need."""
  names = {*between.copies_named(config).values()}
  names |= {*config.copies, config.behaviour}
  names -= {'ema', 'old', 'params'}
  return sorted(names) + (['ema'] if config.ema else [])


def still_copies(config: ml_collections.ConfigDict) -> list[str]:
  """Those of `copies` that stay what training began with."""
  moved = {'ema', *config.copies}
  return [name for name in copies(config) if name not in moved]


# No loss reaches autoencoders, see `models.latent` and `policies.coded`.
_FIXED = r'^(second/)?(vae|codec)/'


def state(
  config: ml_collections.ConfigDict,
  built: Any,
  params: Params,
  tx: optax.GradientTransformation,
  advantage: Advantage | None,
) -> train_state.TrainState:
  """The state before the first step; what to train and to copy is config's.

  Raises:
    ConfigError: `trainable` takes parameters that no loss reaches.
  """
  trained = tree.named(tree.split(params, config.trainable)[0])
  if fixed := [name for name in trained if re.search(_FIXED, name)]:
    raise build.ConfigError(
      f'trainable={config.trainable!r} takes {len(fixed)} parameters of the '
      f'autoencoder ({fixed[0]}, ...), which no loss reaches: weight decay '
      'alone would move them; set trainable="^net/" or less'
    )
  device_rewards, _ = combine.split(built.rewards or {})
  return train_state.create(
    params,
    tx,
    advantage,
    trainable=config.trainable,
    refs=copies(config),
    reward_params=combine.params(
      {
        **device_rewards,
        **combine.split(built.monitors)[0],
      }
    ),
    learners=taught(config, built),
    key=rng.stream_keys(jax.random.key(config.seed), 'critics'),
  )


def minibatches(config: ml_collections.ConfigDict, every: int = 1) -> int:
  """Optimizer steps of a run, of who takes one at each `every`-th minibatch."""
  return -(-config.steps * config.updates * config.epochs // every)


def taught(
  config: ml_collections.ConfigDict, built: Any
) -> dict[str, train_state.Taught]:
  """{label: what is trained beside the policy}, rewards among it."""
  device_rewards, _ = combine.split(built.rewards or {})
  found = {}
  for label, learner in combine.learners(device_rewards).items():
    steps = minibatches(config)
    seed = _seed(config, label)
    tx = build.build(optim, config.critic.optimizer, steps=steps, seed=seed)
    found[label] = train_state.Taught(learner, tx)
  for label, learner in built.learners.items():
    spec = config.learners[label]
    every = spec.get('every', 1)
    steps = minibatches(config, every)
    spec = spec.get('optimizer', specs.LEARNS)
    seed = _seed(config, label)
    tx = build.build(optim, spec, steps=steps, seed=seed)
    found[label] = train_state.Taught(learner, tx, every)
  return found


def _seed(config: ml_collections.ConfigDict, label: str) -> int:
  """Of the noise in a learner's parameters: none has that of another."""
  return zlib.crc32(f'{config.seed}/{label}'.encode()) >> 1
