"""Where the functions are found that the parts of a config name."""

from collections.abc import Mapping
import fnmatch
import inspect

from gen_rl import (
  advantages,
  build,
  models,
  objectives,
  optim,
  policies,
  rewards,
)
from gen_rl.data import pictures, prompts, text_features, tokenizers
from gen_rl.diffusion import schedules, transitions

# Where the function is found that a part of a config names.
SPECS = {
  'tokenizer': tokenizers,
  'data.prompts': prompts,
  'data.reader.tokenizer': tokenizers,
  'data.embed.encoder': text_features,
  'eval.prompts': prompts,
  'model': models,
  'model.net': models,
  'model.vae': models,
  'policy': policies,
  'policy.transition': transitions,
  'policy.window_start': schedules,
  'policy.grid': schedules,
  'policy.training_times': schedules,
  'rollout': pictures,
  'data.view': pictures,
  'rewards.*': rewards,
  'monitors.*': rewards,
  'eval.gold.*': rewards,
  'advantage': advantages,
  'advantage.each': advantages,
  'objective.*': objectives,
  'optimizer': optim,
  'copies.*': optim,
  'critic.optimizer': optim,
  'critic.reals': pictures,
}


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
  for pattern, module in SPECS.items():
    if fnmatch.fnmatchcase(path, pattern):
      if not name or (path, name) == ('rollout', 'policy'):
        return {}
      return inspect.signature(build.find(module, name)).parameters
  return None
