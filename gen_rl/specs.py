"""Where the functions are found that the parts of a config name."""

from collections.abc import Mapping, Sequence
import fnmatch
import inspect
import types
from typing import Any

from gen_rl import (
  advantages,
  build,
  learners,
  measures,
  mixers,
  models,
  objectives,
  optim,
  policies,
  ramps,
  rewards,
  searches,
  worlds,
)
from gen_rl.data import pictures, prompts, text_features, tokenizers
from gen_rl.diffusion import noise, schedules, transitions
from gen_rl.fields import Spec
from gen_rl.measures import features
from gen_rl.policies import branches

# Keys of parts that say what is written, which a resumed run may change.
WRITTEN = {'learners.*.export': True}

# Where the function is found that a part of a config names; a star is a label.
SPECS = {
  'tokenizer': tokenizers,
  'data.prompts': prompts,
  'data.view': pictures,
  'data.reader.tokenizer': tokenizers,
  'data.embed.encoder': text_features,
  'eval.prompts': prompts,
  'eval.rollout': pictures,
  'eval.view': pictures,
  'eval.gold.*': rewards,
  'eval.search': searches,
  'eval.sets.*': measures,
  'evals.*.prompts': prompts,
  'evals.*.rollout': pictures,
  'evals.*.view': pictures,
  'evals.*.gold.*': rewards,
  'evals.*.search': searches,
  'evals.*.sets.*': measures,
  'model': models,
  'model.net': models,
  'model.vae': models,
  'rollout': pictures,
  'rewards.*': rewards,
  'monitors.*': rewards,
  'mix': mixers,
  'search': searches,
  'rewards.*.schedule': ramps,
  'objective.*.schedule': ramps,
  'advantage': advantages,
  'objective.*': objectives,
  'optimizer': optim,
  'copies.*': optim,
  'critic.optimizer': optim,
  'critic.reals': pictures,
  'learners.*': learners,
  'learners.*.optimizer': optim,
}

# Where policies stand: the one, and those that are it with changes. Their own
# parts; of all but the first two, '' is none.
_POLICIES = 'policy', 'explore.policy', 'eval.policy', 'evals.*.policy'
_OF_POLICIES = {
  'transition': transitions,
  'window_start': schedules,
  'noise_schedule': noise,
  'grid': schedules,
  'training_times': schedules,
  'branch': branches,
}
for _place in _POLICIES:
  SPECS |= {f'{_place}.{key}': found for key, found in _OF_POLICIES.items()}
  SPECS[_place] = policies

# Keys of a learner's part that are of its training, and its default optimizer.
LEARNER_KEYS = ('optimizer', 'every', 'export')
LEARNS = dict(name='adamw', lr=1e-3)

# The same of keywords that take parts, of functions anywhere.
INNER = {
  'codec': models,
  'each': advantages,
  'features': features,
  'first': policies,
  'model': models,
  'objective': objectives,
  'real': pictures,
  'reward': rewards,
  'second': policies,
  'world': worlds,
}

# What those who build them give the functions of a module; no config can.
BOUND = {
  advantages: ('group_size', 'reward_weights'),
  branches: ('decisions',),
  learners: ('vocab', 'length', 'group_size', 'end', 'pad', 'reader'),
  models: ('vocab', 'length'),
  objectives: ('group_size', 'on_policy', 'reward_weights'),
  optim: ('steps', 'seed'),
  pictures: ('group_size', 'end'),
  noise: ('times', 'inside', 'variance', 'most', 'iteration'),
  policies: ('net', 'end', 'pad'),
  rewards: ('end', 'pad', 'reader'),
  schedules: ('key', 'keys', 'iteration', 'window', 'low', 'high', 'steps'),
  text_features: ('truncate',),
}

# What functions are annotated to return, where a module has others beside.
RETURNS = {
  'copies.*': 'Callable',
  'optimizer': 'GradientTransformation',
  'critic.optimizer': 'GradientTransformation',
  'learners.*.optimizer': 'GradientTransformation',
}

# Parts that may be '', none.
OPTIONAL = (
  'data.view',
  'data.reader.tokenizer',
  'data.embed.encoder',
  *(f'{place}.{key}' for place in _POLICIES for key in [*_OF_POLICIES][2:]),
  'search',
  'eval.search',
  'evals.*.search',
)

# Parts that change the keywords of another one, where they name no other.
CHANGES = {
  **dict.fromkeys(_POLICIES[1:], 'policy'),
  'eval.prompts': 'data.prompts',
  'eval.rollout': 'rollout',
  'eval.view': 'data.view',
  'evals.*.prompts': 'data.prompts',
  'evals.*.rollout': 'rollout',
  'evals.*.view': 'data.view',
}

# Keys of a part that are of its place, and what they hold: a weight, of which 0
# removes the part; a part that says by which factor the weight moves; and the
# tasks that a reward is for, by default all.
OUTER = {
  'rewards.*': dict(weight=float, schedule=Spec, tasks=Sequence[str]),
  'monitors.*': dict(weight=float, tasks=Sequence[str]),
  'eval.gold.*': dict(tasks=Sequence[str]),
  'evals.*.gold.*': dict(tasks=Sequence[str]),
  'objective.*': dict(weight=float, schedule=Spec),
}


def module(path: str) -> types.ModuleType | None:
  """Where the function is found that a part at `path` names; None: no part."""
  found = _match(SPECS, path)
  above, _, key = path.rpartition('.')
  if found is None and key in INNER and above and module(above) is not None:
    return INNER[key]
  return found


def labelled(path: str) -> bool:
  """Whether a part at `path` stands there under a label of a user's choice."""
  pattern = _match({key: key for key in (*SPECS, 'evals.*')}, path)
  return bool(pattern) and pattern.endswith('.*')


def optional(path: str) -> bool:
  """Whether a part at `path` may be '', none."""
  return bool(_match(dict.fromkeys(OPTIONAL, True), path))


def changes(path: str) -> str | None:
  """The part that one at `path` changes; None: it stands for itself."""
  return _match(CHANGES, path)


def keywords(path: str, name: str | None) -> list[str] | None:
  """What the function `name` takes, at `path` of a config ('data.prompts').

  None where that is no part that names a function.

  Raises:
    ConfigError: there is no such function, listing those there are.
  """
  found = parameters(path, name)
  return None if found is None else list(found)


def parameters(
  path: str, name: str | None
) -> Mapping[str, inspect.Parameter] | None:
  """The same with defaults and annotations."""
  home = module(path)
  if home is None:
    return None
  if not name or (path, name) == ('rollout', 'policy'):
    return {}
  return inspect.signature(build.find(home, name)).parameters


def outer(path: str) -> Mapping[str, Any]:
  """{key: annotation} of a part at `path` that are of its place."""
  return _match(OUTER, path) or {}


def written(path: str) -> bool:
  """Whether a key only says what is written."""
  return bool(_match(WRITTEN, path))


def misplaced(path: str, name: str) -> str | None:
  """Says so where a function of the module is none for this place."""
  wanted, home = _match(RETURNS, path), module(path)
  if wanted is None or home is None:
    return None

  def fits(function: str) -> bool:
    returns = inspect.signature(build.find(home, function)).return_annotation
    return wanted in str(returns)

  if fits(name):
    return None
  valid = ', '.join(filter(fits, build.names(home)))
  return f'{name!r} is not for this place; valid: {valid}.'


def _match(table: Mapping[str, Any], path: str) -> Any:
  """The entry whose parts fit those of the path; None: there is none."""
  places = path.split('.')
  for pattern, value in table.items():
    wanted = pattern.split('.')
    if len(wanted) == len(places) and all(
      map(fnmatch.fnmatchcase, places, wanted)
    ):
      return value
  return None
