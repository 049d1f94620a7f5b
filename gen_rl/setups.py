"""What a config names, built: policy, rewards, prompts and what reads them."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from gen_rl import (
  build,
  evals,
  fits,
  learners,
  mixers,
  models,
  policies,
  schema,
  specs,
)
from gen_rl.data import (
  embeddings,
  feeds,
  pictures,
  pipeline,
  prompts,
  tokenizers,
)
from gen_rl.models.parts import layers
from gen_rl.policies import ode
from gen_rl.rewards import combine, configured
from gen_rl.step.recipe import Pool
from gen_rl.types import Array, Learner, Params, Policy, Rows, Trajectory


class Setup(NamedTuple):
  """What a config builds; shared by train, eval and sample."""

  net: Any  # of the policy
  source: prompts.Prompts | None  # None: none are needed
  tokenizer: tokenizers.Tokenizer
  policy: Policy
  all_decisions: Policy  # the same with every noisy step one: KL sums them all
  sampler: Any  # (params, rows) -> latents, deterministic; None: predicts none
  rewards: combine.Weighted | None
  monitors: combine.Weighted  # rewards that are not trained on
  segments: Any  # the sampler in parts, for `search`; None: it cannot stop
  view: Any  # what the policy is shown, see rollout.make_rows; None: prompts
  reader: pipeline.Reader | None  # what judges read prompts with
  embed: embeddings.Embed | None  # prompts as the network is given them
  learners: dict[str, Learner]  # that are no rewards


# What is not built to search, and to sample.
_UNUSED = dict(
  search=('data.prompts', 'eval.prompts', 'evals', 'monitors'),
  sample=('data.prompts', 'eval', 'evals', 'monitors', 'rewards'),
)


def setup(
  config: ml_collections.ConfigDict,
  own_rewards: combine.Weighted | None = None,
  use: Literal['run', 'search', 'sample'] = 'run',
) -> Setup:
  """Builds the functions a config names.

  Args:
    config: see configs/base.py.
    own_rewards: {label: (Reward, weight)} on top of the config's.
    use: what for. A search needs no prompts and monitors, and a sample of the
      policy neither these nor rewards: their files may be missing, and their
      fields are None or empty.

  Raises:
    ConfigError: all that is wrong with its fields; else the first thing that
      cannot be built.
  """
  running, judged = use == 'run', use != 'sample'
  schema.check(config, () if running else _UNUSED[use])
  source = build.build(prompts, config.data.prompts) if running else None
  tokenizer = build.build(tokenizers, config.tokenizer)
  net = _network(config, config.model, tokenizer)
  end = dict(end=tokenizer.end_id, pad=tokenizer.pad_id)
  policy = build.build(policies, config.policy, net=net, **end)
  all_decisions = build.build(
    policies, _all_decisions(config.policy), net=net, **end
  )
  view = view_of(config)
  sampler, segments = sampler_of(config, policy, net)
  reader = feeds.reader(config) if judged else None
  bound = end | dict(reader=reader and reader.tokenizer)
  built = configured.build_all(config.rewards, **bound) if judged else {}
  weighted = {
    label: (reward, build.weight(config.rewards[label]))
    for label, reward in built.items()
  }
  weighted |= own_rewards or {}
  errors = fits.drawn_judges(config) if judged else []
  for c in evals.configs(config).values() if running else [config]:
    errors += fits.sampler(c, policy)
  errors += fits.policy(config, policy)
  errors += fits.answers(config, source)
  errors += fits.branches(config, view)
  monitors = configured.build_all(config.monitors, **bound) if running else {}
  if running:
    used = {label: reward for label, (reward, _) in weighted.items()}
    errors += fits.tasks('rewards', used, source.tasks)
    errors += fits.unrewarded(config, used, source.tasks)
    errors += fits.tasks('monitors', monitors, source.tasks)
  if running and config.rollout.name == 'policy' and not weighted:
    errors.append(
      'nothing would be trained: the policy samples, and config.rewards has no '
      'reward with a weight'
    )
  if errors:
    raise build.Mistakes(errors)
  trained = {}
  if running:
    trained = build.build_all(
      learners,
      {k: _own(spec) for k, spec in config.learners.items()},
      vocab=tokenizer.size,
      length=config.data.length,
      group_size=config.update_members or config.data.group_size,
      **bound,
    )
  return Setup(
    net,
    source,
    tokenizer,
    policy,
    all_decisions,
    sampler,
    weighted or None,
    {label: (monitor, 1.0) for label, monitor in monitors.items()},
    segments,
    view,
    reader,
    feeds.embed(config),
    trained,
  )


def _network(
  config: ml_collections.ConfigDict,
  spec: build.Spec,
  tokenizer: tokenizers.Tokenizer,
) -> Any:
  # The released networks' configs may say which id is padding to them.
  padding = {} if 'pad' in spec else dict(pad=tokenizer.pad_id)
  net = build.build(
    models,
    spec,
    vocab=tokenizer.size,
    length=config.data.length,
    **padding,
  )
  return layers.traced_once(net)


# Of a policy without noise: no step is a decision, however few there are.
_NO_WINDOW = dict(
  window=1, window_low=0, window_high=0,
  window_start=dict(name='fixed_window'), noise_schedule=dict(name=''),
)  # fmt: skip


def pool(config: ml_collections.ConfigDict, built: Setup) -> Pool | None:
  """What `config.explore` draws, and by which policy; None: nothing.

  Args:
    config: see configs/base.py.
    built: of it.

  Raises:
    ConfigError: a policy with these changes cannot be built.
  """
  explore, tokenizer = config.explore, built.tokenizer
  if not explore.size:
    return None
  view = view_of(config, group_size=explore.size)
  net = built.net
  if not (explore.policy or explore.dtype):
    return Pool(explore.size, view=view)
  if explore.dtype:
    narrow = _in_dtype(build.plain(config.model), explore.dtype)
    net = _network(config, narrow, tokenizer)
  policy = _changed(config, 'explore', net, tokenizer)
  if explore.dtype:
    policy = _narrowed(policy, explore.dtype)
  return Pool(explore.size, policy, view)


def _changed(
  config: ml_collections.ConfigDict,
  section: str,
  net: Any,
  tokenizer: tokenizers.Tokenizer,
) -> Policy:
  """The policy with the changes of `config.SECTION.policy`."""
  spec = build.plain(config[section].policy)
  if spec.get('name', config.policy.name) == config.policy.name:
    spec = {**build.plain(config.policy), **spec}
  if build.argument(policies, spec, 'deterministic'):
    spec |= _NO_WINDOW
  try:
    return build.build(
      policies, spec, net=net, end=tokenizer.end_id, pad=tokenizer.pad_id
    )
  except (build.ConfigError, ValueError) as error:
    raise build.ConfigError(f'config.{section}.policy: {error}') from None


def _in_dtype(spec: dict[str, Any], dtype: str) -> dict[str, Any]:
  """The spec of a network that computes in it, where the network can."""
  if isinstance(spec.get('net'), Mapping):
    return {**spec, 'net': _in_dtype(dict(spec['net']), dtype)}
  if build.takes(models, spec, 'dtype'):
    return {**spec, 'dtype': dtype}
  return spec


def _narrowed(policy: Policy, dtype: str) -> Policy:
  """A policy that samples by rounded parameters."""

  def narrow(params: Params) -> Params:
    return jax.tree.map(
      lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, params
    )

  def rollout(params: Params, rows: Rows, step: Array) -> Trajectory:
    return policy.rollout(narrow(params), rows, step)

  return policy._replace(rollout=rollout)


def _own(spec: build.Spec) -> dict[str, Any]:
  """A learner's own keywords."""
  return {k: v for k, v in spec.items() if k not in specs.LEARNER_KEYS}


def sampler_of(
  config: ml_collections.ConfigDict,
  policy: Policy,
  net: Any,
  counted: bool = False,
) -> tuple[Any, Any]:
  """The sampler of evaluations, and its segments if it can stop; else None.

  With `counted` it also says how much it reused, where it may: see
  `evaluate.sampled`.
  """
  if config.eval.sampler == 'policy':
    if config.eval.policy:
      tokenizer = build.build(tokenizers, config.tokenizer)
      policy = _changed(config, 'eval', net, tokenizer)

    def drawn(params, rows):
      traj = policy.rollout(params, rows, jnp.zeros((), jnp.int32))
      return (traj.sample, traj.reused) if counted else traj.sample

    return drawn, None
  if config.eval.sampler == 'greedy':
    return policy.ops.get('greedy'), None
  if 'velocity' not in policy.ops:
    return None, None
  sampling = (
    net,
    config.eval.steps,
    config.policy.get('shift', 1.0),
    config.policy.get('guidance_scale', 1.0)
    if config.eval.guidance_scale is None
    else config.eval.guidance_scale,
  )
  options = dict(
    grid=config.policy.get('grid'),
    cache_threshold=config.eval.cache_threshold,
  )
  make = ode.counted if counted else ode.sampler
  sampler = make(*sampling, config.eval.solver, **options)
  if config.eval.solver != 'euler':
    return sampler, None
  return sampler, ode.segments(*sampling, **options)


# Settings of policies by which decisions are left out of training. Noise is
# that of policy.noise in all of them, whatever its schedule: one measure of how
# far policies went that were trained by different ones.
_LEAVE_OUT = dict(
  window=0, window_low=0, window_high=0, window_start=None, tail=1.0,
  solver='euler', deterministic=False, drop_truncated=False,
  greedy_first=False, cache_threshold=0.0, noise_schedule=None,
  branch=None, begin=1.0,
)  # fmt: skip


def _all_decisions(spec: build.Spec) -> dict[str, Any]:
  """The spec of a policy, and of those within it, that leaves out none."""
  policy_names = build.names(policies)

  def changed(key: str, value: Any) -> Any:
    name = value.get('name', '') if isinstance(value, Mapping) else ''
    if name.rpartition('.')[2] in policy_names:
      return _all_decisions(value)
    return _LEAVE_OUT.get(key, value)

  return {key: changed(key, value) for key, value in build.plain(spec).items()}


def encoder(
  config: ml_collections.ConfigDict,
  tokenizer: tokenizers.Tokenizer,
  changes: Mapping | None = None,
):
  """What turns rows into (data, cond); None where the policy samples."""
  if config.rollout.name == 'policy':
    return None
  return build.build(
    pictures,
    {**config.rollout, **(changes or {})},
    group_size=config.data.group_size,
    end=tokenizer.end_id,
    pad=tokenizer.pad_id,
  )


def view_of(
  config: ml_collections.ConfigDict,
  changes: Mapping | None = None,
  group_size: int | None = None,
) -> pictures.Encode | None:
  """What the policy is shown, see `rollout.make_rows`; None: nothing.

  Args:
    config: see configs/base.py.
    changes: to config.data.view, those of an evaluation.
    group_size: rows of a prompt; None: the config's.
  """
  spec = {**config.data.view, **(changes or {})}
  if not spec['name']:
    return None
  return build.build(
    pictures, spec, group_size=group_size or config.data.group_size
  )


def mix(config: ml_collections.ConfigDict) -> mixers.Mixer | None:
  """How rewards become one score; None: their weighted sum."""
  if config.mix.name == 'weighted_sum':
    return None
  return build.build(mixers, config.mix)
