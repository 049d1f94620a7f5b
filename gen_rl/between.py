"""Rules between the fields of a config: sentences, none where all is well."""

from collections.abc import Callable, Mapping
from typing import Any

from gen_rl import (
  advantages,
  build,
  fields,
  mixers,
  objectives,
  policies,
  ramps,
  specs,
)


def copies_named(config: Any) -> dict[str, str]:
  """{path of a keyword: copy of the parameters it names}, of objectives."""
  found = {}
  for label, spec in config['objective'].items():
    if not build.weight(spec):
      continue
    keywords = specs.parameters(f'objective.{label}', spec['name']) or {}
    for key, p in keywords.items():
      if fields.names_copy(p.annotation):
        name = spec.get(key, p.default)
        if name is not None:
          found[f'objective.{label}.{key}'] = name
  return found


def _learners_are_there(config: Mapping[str, Any]) -> list[str]:
  """Labels of learners mean one thing, and whoever is asked is there."""
  taken = {'params', 'old', 'ema', 'ref', 'self', *config['copies']}
  taken |= {*config['rewards'], *config['monitors']}
  found = [
    f'config.learners.{label} has the name of a reward or of a copy of the '
    'parameters; call it something else'
    for label in config['learners']
    if label in taken
  ]
  names = [config['export']]
  names += [spec.get('export', '') for spec in config['learners'].values()]
  names = [name for name in names if name]
  if twice := sorted({name for name in names if names.count(name) > 1}):
    found.append(
      f'{", ".join(twice)} would be written twice: config.export and the '
      '`export` of every learner need names of their own'
    )
  spec = config['advantage']
  while (inner := build.argument(advantages, spec, 'each')) is not None:
    spec = inner
  asked = build.argument(advantages, spec, 'values')
  valid = ['params', *config['learners']]
  if asked is not None and asked not in valid:
    found.append(
      f'config.advantage.values is {asked!r}, and nobody of that name has '
      f'values{build.did_you_mean(asked, valid)}; valid: {", ".join(valid)}'
    )
  return found


def _something_is_trained(config: Mapping[str, Any]) -> list[str]:
  if any(map(build.weight, config['objective'].values())) or config['learners']:
    return []
  return [
    'nothing would be trained: config.objective has no term with a weight, and '
    'there are no learners'
  ]


def _copies_are_there(config: Mapping[str, Any]) -> list[str]:
  """Names of copies of the parameters: there is one, and it is another."""
  reserved = {'params', 'old', 'ema', 'ref'} & set(config['copies'])
  found = [
    f'config.copies.{name} has a name that means something else: params, old, '
    'ema and ref are always there'
    for name in sorted(reserved - {'ref'})
  ]
  kept = ['ref', *config['copies']] + ['ema'] * bool(config['ema'])
  named = copies_named(config)
  named = {path: (name, ['old', *kept]) for path, name in named.items()}
  if config['behaviour'] != 'params':
    named['behaviour'] = (config['behaviour'], ['params', *kept])
  for path, (name, valid) in named.items():
    if name in valid:
      continue
    hint = build.did_you_mean(name, valid)
    if name == 'ema':
      hint = ' (there is no average: config.ema is 0)'
    found.append(
      f'config.{path} is {name!r}, which is no copy of the parameters{hint}; '
      f'valid: {", ".join(dict.fromkeys(valid))}; config.copies makes others'
    )
  return found


def _what_is_mixed_is_there(config: Mapping[str, Any]) -> list[str]:
  """Rewards that a mixer names, others beside them, and groups to compare."""
  name = config['mix']['name']
  try:
    mix = build.build(mixers, config['mix'])
  except build.ConfigError as error:
    return [f'config.mix: {error}']
  labels = [k for k, spec in config['rewards'].items() if build.weight(spec)]
  listed = ', '.join(labels) or 'none'
  found = [
    f'config.mix.{key} names {read!r}, and {label!r} is no reward with a weight'
    f'{build.did_you_mean(label, labels)}; there are {listed}'
    for key, read in mix.reads.items()
    if (label := read.partition('/')[0]) not in labels
  ]
  if len(labels) < mix.rewards and mix.rewards > 1:
    found.append(
      f'config.mix.name is {name!r}, which mixes {mix.rewards} rewards or more;'
      f' those with a weight are: {listed}'
    )
  sizes = {'data.group_size': config['data']['group_size']}
  for place, node in _evaluations(config).items():
    if node['name'] == 'sampled':
      sizes[f'{place}.samples'] = node['samples']
  if mix.called_on == 'groups' and config['rollout']['name'] == 'policy':
    found += [
      f'config.{place} is 1, and config.mix.name={name!r} compares the samples '
      'of a prompt: it takes at least 2'
      for place, size in sizes.items()
      if size < 2
    ]
  return found


def _evaluations(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
  """{place: fields} of all there are."""
  changed = {
    f'evals.{label}': {**config['eval'], **changes}
    for label, changes in config['evals'].items()
  }
  return {'eval': config['eval'], **changed}


def _sets_are_of_samples(config: Mapping[str, Any]) -> list[str]:
  return [
    f'config.{place}.sets measures samples, and with name="labelled" there are '
    'none'
    for place, node in _evaluations(config).items()
    if node['name'] == 'labelled' and node['sets']
  ]


def _schedules_are_some(config: Mapping[str, Any]) -> list[str]:
  """A weight whose factor is 0 for ever, which `weight=0` would say."""
  return [
    f'config.{part}.{label}.schedule is 0 from start to end; leave the part '
    'out with weight=0'
    for part in ('rewards', 'objective')
    for label, spec in config[part].items()
    if 'schedule' in spec
    and not any(
      build.argument(ramps, spec['schedule'], key) for key in ('start', 'end')
    )
  ]


def _directions_are_added(config: Mapping[str, Any]) -> list[str]:
  name = config['mix']['name']
  return [
    f'config.objective.{label}.per_reward adds the directions of the rewards, '
    f'and config.mix.name is {name!r}, which mixes their scores: set one of '
    'them back'
    for label, spec in config['objective'].items()
    if build.weight(spec)
    and build.argument(objectives, spec, 'per_reward')
    and name != 'weighted_sum'
  ]


def _rates_go_somewhere(config: Mapping[str, Any]) -> list[str]:
  spec = config['optimizer']
  if spec.get('decay', 'constant') != 'constant' or not spec.get('decay_to'):
    return []
  return [
    f'config.optimizer.decay_to is {spec["decay_to"]}, and the rate does not '
    "decay: set decay to 'linear' or 'cosine'"
  ]


def _rows_can_be_counted(config: Mapping[str, Any]) -> list[str]:
  """Arrays are indexed by numbers of 32 bits."""
  data = config['data']
  rows = data['prompts_per_step'] * data['group_size']
  if rows < 2**31:
    return []
  return [
    f'data.prompts_per_step * data.group_size is {rows} samples a step; it '
    'must be below 2^31'
  ]


def _decisions_are_made(config: Mapping[str, Any]) -> list[str]:
  """Objectives that weigh decisions, of a policy that makes none."""
  policy = config['policy']
  silent = build.argument(policies, policy, 'deterministic')
  noise = build.argument(policies, policy, 'noise')
  if config['rollout']['name'] != 'policy' or not (silent or noise == 0):
    return []
  setting = 'deterministic is True' if silent else 'noise is 0'
  return [
    f'config.objective.{label}: {spec["name"]} trains decisions, and a policy '
    f'makes none whose {setting}'
    for label, spec in config['objective'].items()
    if build.weight(spec)
    and build.takes(objectives, spec, 'on_policy')
    and spec['name'] != 'of_segment'
  ]


def _a_cache_has_steps(config: Mapping[str, Any]) -> list[str]:
  """Velocities are taken by steps that nobody trains."""
  threshold, silent, window, steps = (
    build.argument(policies, config['policy'], key)
    for key in ('cache_threshold', 'deterministic', 'window', 'steps')
  )
  if not threshold or silent or 0 < window < steps - 1:
    return []
  return [
    f'config.policy.cache_threshold is {threshold:g}, and every step but the '
    'last is trained and so computed: set policy.window or '
    'policy.deterministic, or the threshold to 0'
  ]


def _pools_are_drawn(config: Mapping[str, Any]) -> list[str]:
  """Cheap exploration has a pool, of samples that a choice may leave out."""
  explore, data = config['explore'], config['data']
  if not explore['size']:
    said = [k for k in ('policy', 'dtype') if explore[k]]
    return [
      f'config.explore.{k} says how a pool is drawn, and there is none: '
      'config.explore.size is 0'
      for k in said
    ]
  found = []
  if explore['size'] <= data['group_size']:
    found.append(
      f'config.explore.size is {explore["size"]} candidates a prompt; it must '
      f'be above data.group_size={data["group_size"]}, which are chosen of them'
    )
  if config['rollout']['name'] != 'policy':
    found.append(
      f'config.explore.size is {explore["size"]}, and data are not drawn: it '
      "goes with rollout.name='policy'"
    )
  if build.argument(policies, config['policy'], 'greedy_first'):
    found.append(
      'config.policy.greedy_first compares with the first row of a group, '
      'which cheap exploration may not choose; set config.explore.size to 0'
    )
  return found


def _average_is_there(config: Mapping[str, Any]) -> list[str]:
  if 'ema' in config['offload'] and not config['ema']:
    return ['config.offload names the average, but config.ema is 0']
  return []


def _paths_are_sums(config: Mapping[str, Any]) -> list[str]:
  """kl(path=True) weighs sums of log-probs, so the policy has to sum."""
  if build.argument(policies, config['policy'], 'event') in (None, 'sum'):
    return []
  return [
    f'config.objective.{label}.path estimates the KL of whole trajectories, '
    "whose log-probs are sums: set config.policy.event to 'sum', or path to "
    'False'
    for label, spec in config['objective'].items()
    if spec.get('path') and build.weight(spec)
  ]


# Networks that are given features of prompts -> what makes them.
_ENCODERS = dict(mmdit='sd3_text', flux='flux_text', unet='sd15_text')


def _features_are_the_networks(config: Mapping[str, Any]) -> list[str]:
  model, encoder = config['model'], config['data']['embed']['encoder']['name']
  inner = model.get('net')
  net = (inner if isinstance(inner, Mapping) else model).get('name')
  wanted = _ENCODERS.get(net)
  if not wanted or encoder == wanted:
    return []
  if encoder and encoder not in _ENCODERS.values():
    return []  # one of the user's own
  return [
    f'config.data.embed.encoder.name is {encoder!r}, and the network {net} is '
    f'given the features of {wanted}; set it to that'
  ]


def _grids_are_the_networks(config: Mapping[str, Any]) -> list[str]:
  """A network of a discrete process is sampled on the times of one."""
  inner = config['model'].get('net')
  net = (inner if isinstance(inner, Mapping) else config['model']).get('name')
  grid = build.argument(policies, config['policy'], 'grid')
  named = isinstance(grid, Mapping) and grid.get('name')
  if net != 'unet' or config['policy']['name'] != 'denoising' or named:
    return []
  return [
    'config.policy.grid.name is empty, and the network unet is that of a '
    'discrete process; set it to ddim or lcm'
  ]


# (fields it reads, rule): called if nothing is wrong with what it reads.
RULES: tuple[tuple[tuple[str, ...], Callable[..., list[str]]], ...] = (
  (('objective', 'learners'), _something_is_trained),
  (('objective', 'copies', 'ema', 'behaviour'), _copies_are_there),
  (
    ('learners', 'advantage', 'copies', 'rewards', 'export'),
    _learners_are_there,
  ),
  (('explore', 'data', 'policy', 'rollout'), _pools_are_drawn),
  (('offload', 'ema'), _average_is_there),
  (
    ('mix', 'rewards', 'data', 'eval', 'evals', 'rollout'),
    _what_is_mixed_is_there,
  ),
  (('eval', 'evals'), _sets_are_of_samples),
  (('rewards', 'objective'), _schedules_are_some),
  (('optimizer',), _rates_go_somewhere),
  (('objective', 'mix'), _directions_are_added),
  (('data',), _rows_can_be_counted),
  (('objective', 'policy', 'rollout'), _decisions_are_made),
  (('objective', 'policy'), _paths_are_sums),
  (('policy',), _a_cache_has_steps),
  (('model', 'data'), _features_are_the_networks),
  (('model', 'policy'), _grids_are_the_networks),
)
