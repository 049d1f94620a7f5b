"""Does it fit, how long does a step take, and what bounds it: before you pay.

  python -m gen_rl.plan --config=configs/flow_grpo_2b.py --topology=v5e:4x4
  python -m gen_rl.plan --config=configs/flow_grpo_2b.py --topology=v5e:16x16 \
    --config.data.prompts_per_step=256 --sweep --json=plan.json

Compiles the train step of a config ahead of time for chips that need not be
there: no weights are made and nothing runs. TPUs need the extra [plan]. The
step time is a bound (`estimate`, equation (1)) at the figures of data sheets:
a real step takes longer. With host rewards the two programs are planned apart,
and the time of the rewards is not in it.
"""

import dataclasses
import itertools
import json
import math
import os
import sys
from typing import Any

from absl import app, flags
import jax
import ml_collections

from gen_rl import arguments, build, models
from gen_rl import main as main_lib
from gen_rl.estimate import Plan, plan, with_evaluation
from gen_rl.utils import chips

_TOPOLOGY = flags.DEFINE_string(
  'topology', 'local', f'Chips to plan for: {chips.KNOWN}.'
)
_SWEEP = flags.DEFINE_boolean(
  'sweep', False, 'Try several layouts and microbatches, and rank them.'
)
_JSON = flags.DEFINE_string('json', None, 'File to write the numbers to.')

GIB = 2**30


def remedies(config: ml_collections.ConfigDict, chips_: int) -> list[dict]:
  """Changes that save memory, each on top of those before it."""
  rows = config.data.prompts_per_step * config.data.group_size
  out, changes = [], {}
  shards = chips_ // max(1, config.mesh.tensor)
  remat = build.argument(models, config.model, 'remat')
  away = ('ema', 'optimizer') if config.ema else ('optimizer',)
  if config.mesh.fsdp not in (-1, shards):
    changes |= {'mesh.data': 1, 'mesh.fsdp': -1}
    out.append(dict(changes))
  if remat in ('none', 'dots'):
    changes |= {'model.remat': 'full'}
    out.append(dict(changes))
  if set(away) - set(config.offload):
    changes |= {'offload': away}
    out.append(dict(changes))
  parts = config.microbatches, config.rollout_chunks
  while True:
    parts = tuple(2 * n for n in parts)
    whole = [
      rows % (shards * n) == 0 for n in (parts[0] * config.updates, parts[1])
    ]
    if not any(whole):
      return out
    names = ('microbatches', 'rollout_chunks')
    changes |= {
      name: n for name, n, ok in zip(names, parts, whole, strict=True) if ok
    }
    out.append(dict(changes))


def layouts(config: ml_collections.ConfigDict, count: int) -> list[dict]:
  """Changes a sweep tries: layouts of the mesh, then microbatches."""
  rows = config.data.prompts_per_step * config.data.group_size
  meshes = [(1, count, 1), (count, 1, 1)]
  if count >= 4:
    meshes += [(count // 4, 4, 1), (1, count // 4, 4)]
  heads = build.argument(models, config.model, 'heads')
  out = []
  for (data, fsdp, tensor), m in itertools.product(
    dict.fromkeys(meshes), (config.microbatches, 2 * config.microbatches)
  ):
    if rows % (data * fsdp * m * config.updates) or (heads or 1) % tensor:
      continue
    out.append(
      {
        'mesh.data': data, 'mesh.fsdp': fsdp, 'mesh.tensor': tensor,
        'microbatches': m,
      }
    )  # fmt: skip
  return out


def describe(p: Plan) -> str:
  """The page that is printed."""
  mesh = ' x '.join(f'{k}={v}' for k, v in p.mesh.items())
  lines = [
    f'{p.chips} x {p.chip}, mesh {mesh}',
    f'{p.parameters[0] / 1e6:,.1f} M parameters, '
    f'{p.parameters[1] / 1e6:,.1f} M trained; {p.rows} samples a step',
    '',
    'memory of a chip, GiB',
  ]
  rows = [(k, v) for k, v in p.state.items() if v]
  if p.temporary is not None:
    rows += [
      ('activations, temporaries, padding', p.temporary),
      ('program', p.program),
    ]
  for name, size in rows:
    lines.append(f'  {name:<34} {size / GIB:8.3f}')
  if p.needed is not None:
    lines.append(f'  {"all":<34} {p.needed / GIB:8.3f}')
  if p.evaluation is not None:
    lines.append(f'  {"all, in evaluation":<34} {p.evaluation / GIB:8.3f}')
  if p.capacity is not None:
    lines.append(f'  {"there is":<34} {p.capacity / GIB:8.3f}')
  verdict = {True: 'fits', False: 'DOES NOT FIT', None: 'fits? unknown'}
  lines += [verdict[p.fits] + (f': {p.error}' if p.error else ''), '']
  if not p.error:
    share = p.rollout_operations / p.operations if p.operations else 0.0
    lines += [
      f'operations of a chip and step: {p.operations / 1e12:,.3f} T, '
      f'{share:.0%} of them in sampling and rewards',
    ]
    sent = ', '.join(
      f'{kind} {size / 1e9:,.3f} GB' for kind, size in p.network.items() if size
    )
    if p.read:
      lines += [
        f'bytes through memory: {p.memory / 1e9:,.1f} GB',
        f'bytes sent: {sent or "none"}',
      ]
      if p.kernels:
        calls = ', '.join(f'{k} {n:,}' for k, n in sorted(p.kernels.items()))
        lines.append(f'calls of kernels: {calls}')
    else:
      lines.append(
        'bytes through memory and sent: unknown, this jaxlib cannot read the '
        "program that libtpu made (pip install 'jax[tpu]' has one it can read)"
      )
    if p.open_loops:
      lines.append(
        f'{p.open_loops} loops of unknown length count once: the operations '
        'and bytes above are lower bounds'
      )
    if p.seconds:
      times = ', '.join(f'{k} {v:.3g} s' for k, v in p.seconds.items())
      lines.append(
        f'roofline: {p.step_seconds:.3g} s a step ({times}), bound by '
        f'{p.bound}; {p.rows / p.step_seconds:,.0f} samples/s at most'
      )
    else:
      lines.append('roofline: no peak figures of this device are known')
  lines.append(f'compiled in {p.compile_seconds:.0f} s')
  return '\n'.join(lines)


def as_json(p: Plan) -> dict[str, Any]:
  """The fields of a Plan, with what follows from them."""
  return dataclasses.asdict(p) | dict(
    bound=p.bound, step_seconds=p.step_seconds
  )


def _table(plans: list[Plan]) -> str:
  """Layouts that fit first, the fastest on top."""
  lines = [
    f'{"data":>5} {"fsdp":>5} {"tensor":>6} {"micro":>6} {"GiB":>7} '
    f'{"fits":>5} {"s/step":>8}  bound by'
  ]
  for p in plans:
    needed = f'{p.needed / GIB:.2f}' if p.needed else '?'
    seconds = f'{p.step_seconds:.3g}' if p.step_seconds else '?'
    lines.append(
      f'{p.mesh["data"]:>5} {p.mesh["fsdp"]:>5} {p.mesh["tensor"]:>6} '
      f'{p.microbatches:>6} {needed:>7} '
      f'{ {True: "yes", False: "no", None: "?"}[p.fits]:>5} {seconds:>8}  '
      f'{p.bound or "?"}'
    )
  return '\n'.join(lines)


def _rank(p: Plan) -> tuple:
  return (p.fits is False, p.step_seconds or math.inf, p.needed or math.inf)


def run(config: ml_collections.ConfigDict, topology: str, sweep: bool) -> list:
  """Plans and prints; the first of the list is the best, or the only one."""
  devices, chip = chips.devices(topology)
  if sweep:
    tried = layouts(config, len(devices))
    if not tried:
      raise build.ConfigError(
        f'--sweep found no layout: the rows of a step do not divide over '
        f'{len(devices)} chips; change data.prompts_per_step'
      )
    plans = []
    for changes in tried:
      print(f'trying {_words(changes)}', flush=True)
      plans.append(plan(config, devices, chip, changes, evaluation=False))
    plans.sort(key=_rank)
    plans[0] = with_evaluation(plans[0], config, devices)
    print(_table(plans), '\n\nthe best:\n', sep='')
    print(describe(plans[0]))
    return plans
  first = _whole(config, devices, chip, {})
  if first.fits is not False:
    return [first]
  tried = []
  for changes in remedies(config, len(devices)):
    print(f'\ntrying {_words(changes)}', flush=True)
    p = _whole(config, devices, chip, changes)
    tried.append(p)
    if p.fits:
      break
  if not any(p.fits for p in tried):
    print(
      '\nnothing that was tried fits: more chips, fewer trained parameters '
      '(lora.pattern, trainable), or a smaller model'
    )
  return [first, *tried]


def _whole(config, devices, chip, changes) -> Plan:
  """Of the step and, if it may fit, of the evaluation; printed."""
  p = plan(config, devices, chip, changes, evaluation=False)
  if p.fits is not False:
    print(
      f'the step is compiled ({p.compile_seconds:.0f} s); now the evaluation',
      flush=True,
    )
    p = with_evaluation(p, config, devices)
  print(describe(p), flush=True)
  return p


def _words(changes: dict[str, Any]) -> str:
  return ' '.join(f'--config.{k}={v}' for k, v in changes.items())


def main(argv: list[str]) -> None:
  """Command line; --config and its overrides are those of gen_rl.main."""
  if len(argv) > 1:
    raise ValueError(f'unexpected arguments: {" ".join(argv[1:])}')
  config = flags.FLAGS.config
  if config is None:
    raise ValueError('--config says what to plan, e.g. configs/flow_grpo_2b.py')
  arguments.drop_leftovers(config, arguments.overrides_of(sys.argv))
  jax.config.update('jax_enable_compilation_cache', False)
  plans = run(config, _TOPOLOGY.value, _SWEEP.value)
  if _JSON.value:
    with open(_JSON.value, 'w') as file:
      json.dump([as_json(p) for p in plans], file, indent=1)
  if not any(p.fits is not False for p in plans):
    sys.exit(1)


def cli() -> None:
  """Entry point of the command."""
  try:
    argv = arguments.resolve(sys.argv)
    sys.argv = arguments.with_whole_parts(sys.argv)
    app.run(main, arguments.with_whole_parts(argv), flags_parser=flags.FLAGS)
  except Exception as error:
    text = main_lib.sentence(error)
    if text is None or os.environ.get('GEN_RL_TRACEBACK'):
      raise
    print(f'gen_rl: {text}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  cli()
