"""Schedulers of released flows: what scheduler_config.json says of the grid.

Such a network was trained, and is sampled, on times shifted by (1) of
`schedules`. The file says the shift s itself, or how it follows from the number
n of tokens of a picture (use_dynamic_shifting),

  mu = base_shift + (max_shift - base_shift) (n - n_base) / (n_max - n_base),
  s = e^mu, or mu where time_shift_type is linear.                       (1)
"""

from collections.abc import Mapping, Sequence
import inspect
import math
import os
from typing import Any

from gen_rl.diffusion import schedules
from gen_rl.models.files import folders, options
from gen_rl.models.files.weights import WeightsError

_PART = 'scheduler'
_COMPUTED = dict(
  use_karras_sigmas=(False,),
  use_exponential_sigmas=(False,),
  use_beta_sigmas=(False,),
  invert_sigmas=(False,),
  shift_terminal=(None,),
  stochastic_sampling=(False,),
  time_shift_type=('exponential', 'linear'),
)
_DYNAMIC = dict(
  base_image_seq_len=256, max_image_seq_len=4096, base_shift=0.5, max_shift=1.15
)


def config(scheduler: Mapping[str, Any], tokens: int) -> dict[str, Any]:
  """What the grid of a flow is, for a released scheduler_config.json.

  Args:
    scheduler: what the file holds.
    tokens: of a picture.

  Returns:
    shift and train_steps, see `schedules.sd3`.

  Raises:
    ValueError: a scheduler of another process, numbers that are none, or
      options that are not computed; in one sentence.
  """
  name = scheduler.get('_class_name')
  if not _of_flow(scheduler):
    raise ValueError(f'the scheduler {name} is none of a flow')
  said = {k: v for k, v in scheduler.items() if k in _COMPUTED}
  options.check(f'scheduler {name}', said, _COMPUTED)
  dynamic = scheduler.get('use_dynamic_shifting', False)
  numbers = {
    'num_train_timesteps': 1000,
    **(_DYNAMIC if dynamic else {_shift_of(scheduler): 1.0}),
  }
  numbers = {k: scheduler.get(k, default) for k, default in numbers.items()}
  wrong = [
    f'{k}={x!r}' for k, x in numbers.items()
    if isinstance(x, bool) or not isinstance(x, int | float)
    or not math.isfinite(x)
  ]  # fmt: skip
  if wrong:
    raise ValueError(
      f'the scheduler {name} has no number in {", ".join(wrong)}'
    )
  train_steps = numbers.pop('num_train_timesteps')
  if not dynamic:
    (shift,) = numbers.values()
    return dict(shift=shift, train_steps=train_steps)
  try:
    shift = schedules.flux_shift(tokens, *numbers.values())
  except ArithmeticError:
    raise ValueError(f'{name}: no shift follows from {numbers}') from None
  if scheduler.get('time_shift_type') == 'linear':
    shift = math.log(shift)
  return dict(shift=shift, train_steps=train_steps)


def _of_flow(scheduler: Mapping[str, Any]) -> bool:
  return 'FlowMatch' in str(scheduler.get('_class_name')) or bool(
    scheduler.get('use_flow_sigmas')
  )


def _shift_of(scheduler: Mapping[str, Any]) -> str:
  """The name of the shift: others than flows' own call it otherwise."""
  own = 'FlowMatch' in str(scheduler.get('_class_name'))
  return 'shift' if own else 'flow_shift'


def read(folder: str) -> tuple[str, dict[str, Any]] | None:
  """(folder, what the file holds) of a pipeline, or None if it has no such."""
  folder = os.path.expanduser(folder)
  if os.path.isdir(folder) and not os.path.isdir(os.path.join(folder, _PART)):
    return None
  at = folders.locate(folder, _PART)
  return at, folders.read_json(os.path.join(at, 'scheduler_config.json'))


def is_flow(folder: str) -> None:
  """Raises WeightsError if a pipeline samples with another process."""
  found = read(folder)
  if found and not _of_flow(found[1]):
    raise WeightsError(
      f'{found[0]} has a {found[1].get("_class_name")}, and the network is a '
      'flow: FlowMatchEulerDiscreteScheduler or use_flow_sigmas is wanted'
    )


def same_grid(
  folder: str,
  shape: Sequence[int],
  grid: Mapping[str, Any] | None,
  shift: float,
) -> None:
  """A pipeline's grid has to be the one that a policy samples on.

  Folders without a scheduler, and networks of discrete processes, which compare
  their own, pass.

  Args:
    folder: of the pipeline.
    shape: of latents, h w c; two by two are a token.
    grid: see `policies.denoising`.
    shift: likewise.

  Raises:
    ConfigError: they differ; names what does.
    ValueError: see `config`.
  """
  found = read(folder)
  if not found or not _of_flow(found[1]):
    return
  at, scheduler = found
  tokens = math.prod(n // 2 for n in shape[-3:-1])
  there = config(scheduler, tokens)
  said, part = dict(shift=shift), 'policy'
  if grid and grid['name']:
    said, part = _keywords(grid), 'policy.grid'
  if 'tokens' in said:  # dynamic_shift
    said |= dict(shift=schedules.flux_shift(**_keywords(said, 'flux_shift')))
  for name in there:
    if name in said and math.isclose(there[name], said[name], rel_tol=1e-3):
      said[name] = there[name]
  options.same(at, there, said, part)


def _keywords(
  spec: Mapping[str, Any], function: str | None = None
) -> dict[str, Any]:
  """All keywords of a function of `schedules`, its defaults among them."""
  own = getattr(schedules, function or spec['name'])
  names = inspect.signature(own).parameters
  out = {k: p.default for k, p in names.items() if p.default is not p.empty}
  return out | {k: v for k, v in spec.items() if k in names}
