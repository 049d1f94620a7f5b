"""What a run found out in numbers: result.json, and the table of a terminal.

result.json, schema_version 1. A number nobody measured is null.

  schema_version      1
  config_name         file name of the config, with its variant: "flow_grpo:cps"
  seed                of everything random in the run
  steps               updates done
  base, trained       the policy before and after, on the same prompts with the
                      same keys:
    gold                "accuracy": the gold reward gives verdicts; "score": it
                        does not, and `strict` is a mean score; null: there is
                        none (config.eval.gold is empty), and `strict` is null;
                        optional, without it "accuracy"
    strict              fraction of samples the gold reward calls correct; those
                        it could not judge are not
    strict_per_task     {task: that fraction among the prompts of the task}
    proxy               mean reward as trained on
    parts               {name: mean} of what else the gold reward says, and of
                        the monitors; optional. A part is named label/part
                        where another part or a monitor is called the same
    diversity           mean distance between samples of one prompt
    best, worst         mean gold reward of the best and of the worst of a
                        prompt's samples; of verdicts the best is pass@n;
                        optional
    sets                {label: number} of all samples together, such as a
                        Frechet distance (config.eval.sets); optional
    calls               {network_calls, reward_calls, backward_calls} that a
                        search took for a sample (config.eval.search); optional
    evaluated           how many samples there were; optional
    invalid             {gold, proxy, monitor/LABEL: how many of them it could
                        not score}; optional
  evals               {label: {base, trained, trained_on}} of the evaluations
                      beside the main one (config.evals); optional
  trained_on          share of these prompts that training draws, too; 0: they
                      are held out; null: not known; optional, without it 0
  kl                  from the base to the trained policy, nats per sample
  wall_seconds        from the start of Python to this file, of all starts that
                      led to it
  seconds_to_first_metric   from start to the first line of metrics.jsonl
  samples_per_second  median over updates, in all processes
  speed               {step_seconds: that median; tflops: of a device, 1e12
                      operations a second; mfu: share of what its data sheet
                      says, or null; bound_seconds: of a step whose products
                      keep it busy, or null; shares: {stage: of a step's
                      operations}; measured_shares: {stage: of its time}, of
                      a profile}; optional
  peak_rss_bytes      most memory held by process 0
  updates_skipped     updates not taken because they were not finite
  hacked              {step, gold, gold_change, proxy_change}: the evaluation
                      since which the proxy rose while gold fell, what gold was
                      there, and the changes since; null: none; optional
  device              jax's device kind, "cpu" or "NVIDIA H100 80GB HBM3"
  cpus                cores the process might use
  jax_version
  git_commit          of the checkout the package ran from, or null

Further keys are kept as they are.
"""

from collections.abc import Mapping, Sequence
import json
import math
import pathlib
from typing import Any

from gen_rl import hacking
from gen_rl.utils import files, words

SCHEMA_VERSION = 1
POLICY_KEYS = ('strict', 'strict_per_task', 'proxy', 'diversity')
RESULT_KEYS = (
  'schema_version',
  'config_name',
  'seed',
  'steps',
  'base',
  'trained',
  'kl',
  'wall_seconds',
  'seconds_to_first_metric',
  'samples_per_second',
  'peak_rss_bytes',
  'updates_skipped',
  'device',
  'cpus',
  'jax_version',
  'git_commit',
)
# Results of older releases lack the first three, runs without config.evals the
# last.
OPTIONAL_KEYS = ('trained_on', 'speed', 'hacked', 'evals')


def of_run(
  config: Mapping[str, Any],
  base: Mapping[str, Any],
  trained: Mapping[str, Any],
  environment: Mapping[str, Any],
  **more: Any,
) -> dict[str, Any]:
  """What result.json holds.

  Args:
    config: of the run.
    base: `Evaluation.summary` of the policy before.
    trained: the same of the policy after.
    environment: `system.environment()`.
    **more: the keys of the module docstring that do not follow from these.
  """
  return dict(
    schema_version=SCHEMA_VERSION,
    config_name=config['name'],
    seed=config['seed'],
    base=base,
    trained=trained,
    device=environment['device'],
    cpus=environment['cpus'],
    jax_version=environment['jax'],
    git_commit=environment['git_commit'],
    **more,
  )


def check(result: Mapping) -> None:
  """Raises ValueError, naming what is missing, unless the schema is met."""
  if not isinstance(result, Mapping):
    raise ValueError(f'The result is no mapping: {result!r:.60}.')
  missing = [k for k in RESULT_KEYS if k not in result]
  for name in ('base', 'trained'):
    part = result.get(name)
    part = part if isinstance(part, Mapping) else {}
    missing += [f'{name}.{k}' for k in POLICY_KEYS if k not in part]
  if missing:
    raise ValueError(f'The result lacks {", ".join(missing)}.')
  if result['schema_version'] != SCHEMA_VERSION:
    raise ValueError(
      f'schema_version is {result["schema_version"]}, not {SCHEMA_VERSION}.'
    )


def write_json(workdir, result: Mapping) -> pathlib.Path:
  """Writes <workdir>/result.json, whole or not at all.

  Args:
    workdir: a folder.
    result: as the module docstring says; numpy and jax numbers will do. NaN
      becomes null.

  Returns:
    The path.

  Raises:
    ValueError: a key is missing.
  """
  check(result)
  path = pathlib.Path(workdir) / 'result.json'
  files.write_json(path, result)
  return path


def read_json(workdir) -> dict | None:
  """What `write_json` wrote there, or None: no such file, or not as it was."""
  path = pathlib.Path(workdir) / 'result.json'
  try:
    result = json.loads(path.read_text(encoding='utf-8'))
    check(result)
  except (FileNotFoundError, ValueError):
    return None
  return result


def gold(part: Mapping) -> str | None:
  """What `strict` of a policy is: "accuracy", "score" or, of none, None."""
  return part.get('gold', 'accuracy')


def evaluated_on(trained_on: float | None) -> str:
  """What prompts are called: "held-out", if none of them is trained on.

  Args:
    trained_on: share of the prompts that are; None: not known.
  """
  return 'held-out' if trained_on == 0 else 'evaluation'


def table(result: Mapping) -> str:
  """The result as plain text for a terminal, one row a line."""
  lines = aligned([('', 'base', 'trained', 'change'), *rows(result)])
  return '\n'.join([lines, verdict(result)])


def aligned(cells: Sequence[Sequence[str]]) -> str:
  """A table of four columns, a rule under its heads and at its end."""
  widths = [max(len(r[i]) for r in cells) for i in range(4)]
  lines = [
    '  '.join(
      [r[0].ljust(widths[0])]
      + [c.rjust(w) for c, w in zip(r[1:], widths[1:], strict=True)]
    )
    for r in cells
  ]
  lines = [line.rstrip() for line in lines]
  rule = '-' * max(map(len, lines))
  return '\n'.join([lines[0], rule, *lines[1:], rule])


def verdict(result: Mapping) -> str:
  """One or two sentences: what changed, at what price, what looks wrong."""
  base, trained = result['base'], result['trained']
  updates = words.count(result['steps'], 'update')
  cost = f'{updates} in {words.duration(result["wall_seconds"])}'
  a, b = words.to_float(base['strict']), words.to_float(trained['strict'])
  where = evaluated_on(result.get('trained_on', 0))
  if gold(base) is None:
    a, b = words.to_float(base['proxy']), words.to_float(trained['proxy'])
    change = f'{words.fixed(a)} → {words.fixed(b)} ({words.signed(b - a)})'
    out = [
      f'{where.capitalize()} proxy {change} after {cost}; there is no gold '
      'reward (config.eval.gold is empty), so nothing else judged the samples.'
    ]
  elif not (math.isfinite(a) and math.isfinite(b)):
    out = [f'{cost}; {where} {gold(base)} was not measured.']
  elif gold(base) == 'accuracy':
    change = words.points(100 * (b - a))
    out = [
      f'{where.capitalize()} strict accuracy {a:.3f} → {b:.3f} ({change}) '
      f'after {cost}.'
    ]
  else:
    change = words.signed(b - a)
    out = [
      f'{where.capitalize()} gold score {a:.3f} → {b:.3f} ({change}) after '
      f'{cost}.'
    ]
  if share := result.get('trained_on'):
    out.append(
      f'Training draws {words.percent(share)} of the prompts of the '
      'evaluation, too.'
    )
  proxy = words.to_float(trained['proxy']) - words.to_float(base['proxy'])
  if found := result.get('hacked'):
    out.append(hacking.says(found))
  elif gold(base) is not None and proxy > 0 and b < a:
    out.append('The proxy rose while the gold reward fell: reward hacking.')
  kept = words.ratio(trained['diversity'], base['diversity'])
  if math.isfinite(kept):
    low = '' if kept >= 0.8 else ', below the 80% that count as no collapse'
    out.append(f'Diversity is {words.percent(kept)} of the base{low}.')
  if any(
    lost := [(p.get('invalid') or {}).get('gold') for p in (base, trained)]
  ):
    wrong = ', which count as wrong' if gold(base) == 'accuracy' else ''
    out.append(
      f'The gold reward could not judge {lost[0]} of {base["evaluated"]} '
      f'samples of the base and {lost[1]} of {trained["evaluated"]} of the '
      f'trained policy{wrong}.'
    )
  if result['updates_skipped']:
    skipped = words.count(result['updates_skipped'], 'update')
    out.append(f'{skipped} skipped as not finite.')
  return ' '.join(out)


def rows(result: Mapping) -> list[tuple[str, str, str, str]]:
  """(label, base, trained, change) as text."""
  out = compare(result['base'], result['trained'])
  out.append(
    ('KL to base (nats)', words.fixed(0.0), words.fixed(result['kl']), '')
  )
  for label, other in (result.get('evals') or {}).items():
    a, b = other['base'], other['trained']
    name = 'strict' if gold(a) is not None else 'proxy'
    kind = 'gold' if name == 'strict' else name
    change = words.to_float(b[name]) - words.to_float(a[name])
    out.append(
      (f'{label} ({kind})', words.fixed(a[name]), words.fixed(b[name]),
       words.signed(change))
    )  # fmt: skip
  return out


def compare(
  base: Mapping[str, Any], trained: Mapping[str, Any]
) -> list[tuple[str, str, str, str]]:
  """The same of two `Evaluation.summary` on the same prompts."""
  compared = [
    (
      task,
      base['strict_per_task'].get(task),
      trained['strict_per_task'].get(task),
    )
    for task in dict.fromkeys(
      [*base['strict_per_task'], *trained['strict_per_task']]
    )
  ]
  if gold(base) is not None:
    compared.append(('all tasks (gold)', base['strict'], trained['strict']))
  compared.append(('proxy (trained on)', base['proxy'], trained['proxy']))
  for name, part in (base.get('parts') or {}).items():
    other = (trained.get('parts') or {}).get(name)
    compared.append((name.replace('_', ' '), part, other))
  for name, number in (base.get('sets') or {}).items():
    other = (trained.get('sets') or {}).get(name)
    compared.append((f'{name} (set)', number, other))
  out = []
  for label, a, b in compared:
    change = words.to_float(b) - words.to_float(a)
    out.append((label, words.fixed(a), words.fixed(b), words.signed(change)))
  lost, now = base.get('invalid') or {}, trained.get('invalid') or {}
  for name in lost:
    if lost[name] or now[name]:
      change = f'{now[name] - lost[name]:+d}'.replace('-', '−')
      label = f'not scored ({name})'
      out.append((label, str(lost[name]), str(now[name]), change))
  a, b = base['diversity'], trained['diversity']
  kept = words.percent(words.ratio(b, a))
  out.append(('diversity (kept)', words.fixed(a), words.fixed(b), kept))
  return out
