"""What a run found out: result.json, a table, and report.html.

result.json, schema_version 1. A number nobody measured is null.

  schema_version      1
  config_name         file name of the config, with its variant: "flow_grpo:cps"
  seed                of everything random in the run
  steps               updates done
  base, trained       the policy before and after, on the same held-out prompts
                      with the same keys:
    strict              fraction of samples the gold oracle calls correct
    strict_per_task     {task: that fraction among the prompts of the task}
    proxy               mean reward as trained on
    parts               {name: mean} of what else the gold reward says; optional
    diversity           mean distance between samples of one prompt
  kl                  from the base to the trained policy, nats per sample
  wall_seconds        from start of the process to this file
  seconds_to_first_metric   from start to the first line of metrics.jsonl
  samples_per_second  median over updates, in all processes
  peak_rss_bytes      most memory held by process 0
  updates_skipped     updates not taken because they were not finite
  device              jax's device kind, "cpu" or "NVIDIA H100 80GB HBM3"
  jax_version
  git_commit          of the checkout the package ran from, or null

Further keys are kept as they are.

report.html is one file that needs no other: style inside, pictures as base64
PNG, plots as SVG, no script, no request to any server.
"""

from collections.abc import Mapping, Sequence
import fnmatch
import html
import json
import math
import os
import pathlib
import shlex
from typing import Any, NamedTuple

import numpy as np
import yaml

from gen_rl import metrics
from gen_rl.utils import image as image_lib
from gen_rl.utils import page, svg

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
  'jax_version',
  'git_commit',
)

# Title, patterns of metric names (fnmatch; "!" excludes), fixed range or None,
# running mean. A panel without a match is left out.
PANELS = (
  ('Held-out: gold oracle and proxy', ('eval/strict', 'eval/proxy'), None, 1),
  ('Held-out: gold oracle per task', ('eval/strict/*',), None, 1),
  ('Reward in training', ('reward/*', '!*std*', '!*valid*'), None, 9),
  ('Diversity within a prompt', ('eval/diversity', 'diversity/*'), None, 1),
  ('KL to the base', ('kl/*', '*/kl', '*/kl_*', '!loss/*'), None, 9),
  ('Gradient norm', ('*/grad_norm', '*/grad_norm_*'), None, 9),
  ('Clip fraction', ('*/clip_fraction', '*/clip_fraction_*'), None, 9),
  ('Loss', ('loss/*', '*/loss'), None, 9),
  ('Samples per second', ('speed/samples_per_second',), None, 9),
)


class Comparison(NamedTuple):
  """Pictures of both policies for the same prompts from the same seeds."""

  prompts: Sequence[str]  # P
  before: Any  # [P n h w c] float [0, 1] or uint8
  after: Any  # [P n h w c]
  correct_before: Any = None  # [P n] bool
  correct_after: Any = None
  reward_before: Any = None  # [P n]
  reward_after: Any = None


def read_history(path) -> list[dict]:
  """Lines of metrics.jsonl, in order. See gen_rl/metrics.py.

  Args:
    path: the file, or the workdir that holds it.
  """
  path = pathlib.Path(path)
  return metrics.read(path / metrics.FILE if path.is_dir() else path)


def check_result(result: Mapping) -> None:
  """Raises ValueError, naming what is missing, unless the schema is met."""
  missing = [k for k in RESULT_KEYS if k not in result]
  for name in ('base', 'trained'):
    part = result.get(name) or {}
    missing += [f'{name}.{k}' for k in POLICY_KEYS if k not in part]
  if missing:
    raise ValueError(f'The result lacks {", ".join(missing)}.')
  if result['schema_version'] != SCHEMA_VERSION:
    raise ValueError(
      f'schema_version is {result["schema_version"]}, not {SCHEMA_VERSION}.'
    )


def write_result_json(workdir, result: Mapping) -> pathlib.Path:
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
  check_result(result)
  path = pathlib.Path(workdir) / 'result.json'
  text = json.dumps(_plain(result), indent=2, allow_nan=False) + '\n'
  _write(path, text)
  return path


def result_table(result: Mapping) -> str:
  """The result as plain text for a terminal, one row a line."""
  rows = [('', 'base', 'trained', 'change'), *_rows(result)]
  widths = [max(len(r[i]) for r in rows) for i in range(4)]
  lines = [
    '  '.join(
      [r[0].ljust(widths[0])]
      + [c.rjust(w) for c, w in zip(r[1:], widths[1:], strict=True)]
    )
    for r in rows
  ]
  lines = [line.rstrip() for line in lines]
  rule = '-' * max(map(len, lines))
  return '\n'.join([lines[0], rule, *lines[1:], rule, verdict(result)])


def verdict(result: Mapping) -> str:
  """One or two sentences: what changed, at what price, what looks wrong."""
  base, trained = result['base'], result['trained']
  cost = f'{_count(result["steps"], "update")} in ' + _duration(
    result['wall_seconds']
  )
  a, b = _float(base['strict']), _float(trained['strict'])
  if not (math.isfinite(a) and math.isfinite(b)):
    out = [f'{cost}; held-out accuracy was not measured.']
  else:
    points = 100 * (b - a)
    out = [
      f'Held-out strict accuracy {a:.3f} → {b:.3f} ({_points(points)}) '
      f'after {cost}.'
    ]
  proxy = _float(trained['proxy']) - _float(base['proxy'])
  if proxy > 0 and b < a:
    out.append('The proxy rose while the gold oracle fell: reward hacking.')
  kept = _ratio(trained['diversity'], base['diversity'])
  if math.isfinite(kept):
    low = '' if kept >= 0.8 else ', below the 80% that count as no collapse'
    out.append(f'Diversity is {100 * kept:.0f}% of the base{low}.')
  if result['updates_skipped']:
    skipped = _count(result['updates_skipped'], 'update')
    out.append(f'{skipped} skipped as not finite.')
  return ' '.join(out)


def write_report(
  workdir,
  result: Mapping,
  history: Sequence[Mapping],
  grids: Mapping[str, Any],
  config,
  env: Mapping,
  commands: Mapping[str, str] | None = None,
) -> pathlib.Path:
  """Writes <workdir>/report.html.

  Args:
    workdir: a folder; also what the commands name.
    result: as the module docstring says.
    history: lines of metrics.jsonl, from `read_history`. PANELS says which
      metrics are drawn.
    grids: {heading: Comparison, or one picture [h w c] (a finished grid)}.
    config: ConfigDict, dict, or text.
    env: from `system.environment`.
    commands: {what it does: shell command}; by default how to reproduce,
      resume and evaluate the run.

  Returns:
    The path.

  Raises:
    ValueError: the result lacks a key.
  """
  check_result(result)
  if commands is None:
    commands = _commands(result, workdir)
  name = html.escape(str(result['config_name']))
  body = [
    f'<header><p class="eyebrow">gen_rl</p><h1>{name}</h1>'
    f'<p class="verdict">{html.escape(verdict(result))}</p>'
    f'{_tiles(result)}</header>',
    page.section('Result', _table(result)),
    page.section('Curves', _plots(history)),
    *(page.section(title, _samples(grid)) for title, grid in grids.items()),
    page.section('Run it again', _command_list(commands)),
    page.section('Environment', _environment(result, env)),
    page.section('Config', _config(config)),
  ]
  path = pathlib.Path(workdir) / 'report.html'
  title = f'{result["config_name"]} – gen_rl'
  _write(path, page.document(title, ''.join(body)))
  return path


def _rows(result):
  """(label, base, trained, change) as text."""
  base, trained = result['base'], result['trained']
  tasks = list(
    dict.fromkeys([*base['strict_per_task'], *trained['strict_per_task']])
  )
  triples = [
    (
      task,
      base['strict_per_task'].get(task),
      trained['strict_per_task'].get(task),
    )
    for task in tasks
  ]
  triples.append(('all tasks (gold)', base['strict'], trained['strict']))
  rows = []
  for label, a, b in triples:
    a, b = _float(a), _float(b)
    rows.append((label, _fixed(a), _fixed(b), _signed(b - a)))
  a, b = _float(base['proxy']), _float(trained['proxy'])
  rows.append(('proxy (trained on)', _fixed(a), _fixed(b), _signed(b - a)))
  for name, a in (base.get('parts') or {}).items():
    a, b = _float(a), _float((trained.get('parts') or {}).get(name))
    rows.append((name.replace('_', ' '), _fixed(a), _fixed(b), _signed(b - a)))
  a, b = _float(base['diversity']), _float(trained['diversity'])
  kept = _ratio(b, a)
  kept = f'{100 * kept:.0f}%' if math.isfinite(kept) else '–'
  rows.append(('diversity (kept)', _fixed(a), _fixed(b), kept))
  rows.append(('KL to base (nats)', _fixed(0.0), _fixed(result['kl']), ''))
  return rows


def _table(result):
  head = ''.join(
    f'<th scope="col">{t}</th>' for t in ('', 'base', 'trained', 'change')
  )
  rows = []
  for label, a, b, change in _rows(result):
    css = ' class="total"' if label.startswith('all tasks') else ''
    cells = ''.join(f'<td>{html.escape(c)}</td>' for c in (a, b, change))
    label = html.escape(label.replace('_', ' '))
    rows.append(f'<tr{css}><th scope="row">{label}</th>{cells}</tr>')
  return (
    '<div class="scroll"><table class="result"><thead><tr>'
    f'{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    '<p class="note">Gold: fraction of held-out samples that the exact oracle '
    'calls correct; training never saw it unless the config says so. Proxy: '
    'the reward that was trained on.</p>'
  )


def _tiles(result):
  kept = _ratio(result['trained']['diversity'], result['base']['diversity'])
  speed = _float(result['samples_per_second'])
  tiles = {
    'gold accuracy': _fixed(result['trained']['strict']),
    'diversity kept': f'{100 * kept:.0f}%' if math.isfinite(kept) else '–',
    'KL to base': svg.number(_float(result['kl'])),
    'wall time': _duration(result['wall_seconds']),
    'samples / s': svg.number(speed),
    'peak memory': _bytes(result['peak_rss_bytes']),
  }
  return page.facts('tiles', tiles)


def series(history: Sequence[Mapping], name: str):
  """(steps, values) of one metric; null is NaN."""
  pairs = [(h['step'], _float(h[name])) for h in history if name in h]
  return [p[0] for p in pairs], [p[1] for p in pairs]


def _plots(history):
  names = list(dict.fromkeys(k for h in history for k in h))
  figures = []
  for title, patterns, y_range, smoothing in PANELS:
    data = {n: series(history, n) for n in _match(names, patterns)}
    data = {n: d for n, d in data.items() if np.isfinite(d[1]).any()}
    if not data:
      continue
    shared = os.path.commonprefix([*data]).rpartition('/')[0]
    keys = ''.join(
      f'<span class="key s{i % svg.COLORS}">'
      f'{html.escape(n.removeprefix(shared + "/") if data.keys() - {n} else n)}'
      f' <b>{svg.number(_last(ys))}</b></span>'
      for i, (n, (_, ys)) in enumerate(data.items())
    )
    plot = svg.curves(data, title=title, smoothing=smoothing, y_range=y_range)
    figures.append(
      f'<figure><figcaption><h3>{title}</h3><p>{keys}</p></figcaption>'
      f'{plot}</figure>'
    )
  if not figures:
    return ''
  return (
    f'<div class="plots">{"".join(figures)}</div><p class="note">Numbers in '
    'the keys are the last values. Where a faint line runs behind a curve it '
    'is what was measured, and the curve its running mean.</p>'
  )


def _match(names, patterns):
  """Names in the order of the patterns, without the excluded, at most 8."""
  out = [p[1:] for p in patterns if p.startswith('!')]
  found = dict.fromkeys(
    n for p in patterns for n in names if fnmatch.fnmatchcase(n, p)
  )
  return [n for n in found if not any(fnmatch.fnmatchcase(n, p) for p in out)][
    : svg.COLORS
  ]


def _samples(grid):
  if not isinstance(grid, Comparison):
    return f'<div class="scroll">{page.picture(grid, "samples", "sheet")}</div>'
  before, after = (image_lib.to_uint8(m) for m in (grid.before, grid.after))
  if len(grid.prompts) != len(before) or before.shape != after.shape:
    raise ValueError(
      f'{len(grid.prompts)} prompts, pictures {before.shape}, {after.shape}.'
    )
  cards = []
  for i, prompt in enumerate(grid.prompts):
    rows = [
      page.strip(
        label,
        media[i],
        *(None if v is None else np.asarray(v)[i] for v in (correct, reward)),
      )
      for label, media, correct, reward in (
        ('base', before, grid.correct_before, grid.reward_before),
        ('trained', after, grid.correct_after, grid.reward_after),
      )
    ]
    cards.append(
      f'<figure class="card"><figcaption>{html.escape(str(prompt))}'
      f'</figcaption>{"".join(rows)}</figure>'
    )
  marks = ''
  if grid.correct_before is not None or grid.correct_after is not None:
    marks = (
      ' <span class="mark ok">correct</span> and '
      '<span class="mark no">wrong</span> by the gold oracle.'
    )
  return (
    '<p class="note">The two rows of a prompt start from the same seeds, '
    f'column by column.{marks}</p><div class="cards">{"".join(cards)}</div>'
  )


def _commands(result, workdir):
  name, _, variant = str(result['config_name']).partition(':')
  config = f'configs/{name.removesuffix(".py")}.py'
  main = 'python -m gen_rl.main --config=' + shlex.quote(
    config + (f':{variant}' if variant else '')
  )
  here = f'--workdir={shlex.quote(os.fspath(workdir))}'
  return {
    'Reproduce (an empty workdir)': (
      f'{main} --config.seed={result["seed"]} --workdir=runs/again'
    ),
    'Resume, or train on': f'{main} {here}',
    'Evaluate the last checkpoint': f'{main} {here} --mode=eval',
  }


def _command_list(commands):
  return ''.join(
    f'<h3>{html.escape(what)}</h3><pre><code>{html.escape(command)}</code>'
    '</pre>'
    for what, command in commands.items()
  )


def _environment(result, env):
  rows = {
    'seed': result['seed'],
    'updates': result['steps'],
    'updates skipped': result['updates_skipped'],
    'first metric after': _duration(result['seconds_to_first_metric']),
    'git commit': result['git_commit'] or 'none (installed package)',
    'device': result['device'],
    'jax': result['jax_version'],
  }
  known = {'git_commit', 'device', 'jax'}
  rows |= {k: v for k, v in env.items() if k not in known}
  return page.facts('facts', rows)


def _config(config):
  if isinstance(config, str):
    text = config
  else:
    config = config.to_dict() if hasattr(config, 'to_dict') else dict(config)
    text = yaml.safe_dump(_plain(config), sort_keys=False, width=76)
  return (
    '<details><summary>All fields, as YAML</summary>'
    f'<pre><code>{html.escape(text)}</code></pre></details>'
  )


def _plain(x):
  """Python's own types all the way down; NaN and infinities to None."""
  if isinstance(x, Mapping):
    return {str(k): _plain(v) for k, v in x.items()}
  if isinstance(x, (list, tuple)):
    return [_plain(v) for v in x]
  if isinstance(x, (str, bool, int, type(None))):
    return x
  if isinstance(x, float):
    return x if math.isfinite(x) else None
  if hasattr(x, 'tolist'):
    return _plain(x.tolist())
  return str(x)


def _write(path, text):
  part = path.with_name(path.name + '.part')
  part.write_text(text, encoding='utf-8')
  os.replace(part, path)


def _float(x):
  return math.nan if x is None else float(x)


def _last(ys):
  return next((y for y in reversed(ys) if math.isfinite(y)), math.nan)


def _ratio(a, b):
  a, b = _float(a), _float(b)
  return a / b if b else math.nan


def _fixed(x):
  x = _float(x)
  return f'{x:.3f}' if math.isfinite(x) else '–'


def _signed(x):
  return f'{x:+.3f}'.replace('-', '−') if math.isfinite(x) else '–'


def _points(x):
  if not math.isfinite(x):
    return '–'
  return f'{x:+.1f} points'.replace('-', '−')


def _count(n, what):
  return f'{n:,} {what}' + ('' if n == 1 else 's')


def _duration(seconds):
  seconds = _float(seconds)
  if not math.isfinite(seconds):
    return '–'
  if seconds < 60:
    return f'{seconds:.1f} s'
  minutes, s = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours} h {minutes} min' if hours else f'{minutes} min {s} s'


def _bytes(n):
  n = _float(n)
  return f'{n / 2**30:.1f} GiB' if math.isfinite(n) else '–'
