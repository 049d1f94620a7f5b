"""What a run found out, for people: report.html.

One file that needs no other: style inside, pictures as base64 PNG, plots as
SVG, no script, no request to any server. Its numbers are those of `results`.
"""

from collections.abc import Mapping, Sequence
import fnmatch
import html
import math
import os
import pathlib
import statistics
from typing import Any, NamedTuple

import numpy as np
import yaml

from gen_rl import metrics, results
from gen_rl.utils import files, page, svg, words
from gen_rl.utils import image as image_lib

# Title, patterns of metric names (fnmatch; "!" excludes), fixed range or None,
# running mean. A panel without a match is left out.
PANELS = (
  ('Evaluation: gold and proxy', ('eval/strict', 'eval/proxy'), None, 1),
  (
    'Other evaluations: gold and proxy',
    ('evals/*/strict', 'evals/*/proxy'),
    None,
    1,
  ),
  ('Evaluation: gold per task', ('eval/strict/*',), None, 1),
  (
    'Reward in training',
    ('reward/*', '!*std*', '!*valid*', '!*scored'),
    None,
    9,
  ),
  ('Evaluation: monitors', ('eval/monitor/*',), None, 1),
  (
    'What the advantages are about',
    ('monitor/*/advantage_corr', 'monitor/*/equal_share'),
    None,
    9,
  ),
  ('Diversity within a prompt', ('eval/diversity', 'diversity/*'), None, 1),
  ('KL from the base, nats a sample', ('kl/base',), None, 1),
  ('KL terms of the loss', ('*/kl', '*/kl_*'), None, 9),
  ('Gradient norm', ('*/grad_norm', '*/grad_norm_*'), None, 9),
  ('Clip fraction', ('*/clip_fraction', '*/clip_fraction_*'), None, 9),
  ('Loss', ('loss/*', '*/loss', '!learner/*'), None, 9),
  ('Losses of learners', ('learner/*/loss',), None, 9),
  ('Values', ('advantage/value', 'advantage/return'), None, 9),
  ('Samples per second', ('speed/samples_per_second',), None, 9),
)


class Comparison(NamedTuple):
  """Pictures of both policies for the same prompts from the same seeds."""

  prompts: Sequence[str]  # P
  before: Any  # [P n h w c] float [0, 1] or uint8
  after: Any  # [P n h w c]
  correct_before: Any = None  # [P n] of True, False, None (not judged)
  correct_after: Any = None
  reward_before: Any = None  # [P n]
  reward_after: Any = None
  source: Any = None  # [P n h w c] what both policies were shown


def comparison(base: Any, trained: Any, prompts: int) -> Comparison:
  """The first pictures of two `evaluation.Evaluation`s."""
  before, after = base.shown(prompts), trained.shown(prompts)
  return Comparison(
    prompts=trained.texts[:prompts],
    before=before.pictures,
    after=after.pictures,
    correct_before=before.correct,
    correct_after=after.correct,
    reward_before=before.reward,
    reward_after=after.reward,
    source=after.source,
  )


def median_speed(workdir: str) -> float | None:
  """Samples a second of an update, over all processes of a run."""
  name = 'speed/samples_per_second'
  history = read_history(workdir)
  speeds = [line[name] for line in history if line.get(name)]
  return statistics.median(speeds) if speeds else None


def read_history(path) -> list[dict]:
  """Lines of metrics.jsonl, in order. See gen_rl/metrics.py.

  Args:
    path: the file, or the workdir that holds it.
  """
  path = pathlib.Path(path)
  return metrics.read(path / metrics.FILE if path.is_dir() else path)


def write_report(
  workdir,
  result: Mapping,
  history: Sequence[Mapping],
  grids: Mapping[str, Any],
  config,
  env: Mapping,
  commands: Mapping[str, str],
) -> pathlib.Path:
  """Writes <workdir>/report.html.

  Args:
    workdir: a folder.
    result: as `results` says.
    history: lines of metrics.jsonl, from `read_history`. PANELS says which
      metrics are drawn.
    grids: {heading: Comparison, or one picture [h w c] (a finished grid)}.
    config: ConfigDict, dict, or text.
    env: from `system.environment`.
    commands: {what it does: shell command}, how to run it again.

  Returns:
    The path.

  Raises:
    ValueError: the result lacks a key.
  """
  results.check(result)
  name = html.escape(str(result['config_name']))
  body = [
    f'<header><p class="eyebrow">gen_rl</p><h1>{name}</h1>'
    f'<p class="verdict">{html.escape(results.verdict(result))}</p>'
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
  files.write_text(path, page.document(title, ''.join(body)))
  return path


def _table(result):
  head = ''.join(
    f'<th scope="col">{t}</th>' for t in ('', 'base', 'trained', 'change')
  )
  rows = []
  for label, a, b, change in results.rows(result):
    css = ' class="total"' if label.startswith('all tasks') else ''
    cells = ''.join(f'<td>{html.escape(c)}</td>' for c in (a, b, change))
    label = html.escape(label.replace('_', ' '))
    rows.append(f'<tr{css}><th scope="row">{label}</th>{cells}</tr>')
  where = 'on the prompts of the evaluation'
  if result.get('trained_on', 0) == 0:
    where = 'on prompts that training never saw'
  gold = {
    'accuracy': 'Gold: fraction of samples that the gold reward calls correct '
    f'(what it cannot judge is not), {where}.',
    'score': 'Gold: mean score of the gold reward, which gives no verdicts, '
    f'{where}.',
    None: 'There is no gold reward (config.eval.gold is empty): whether '
    'samples are right was not measured.',
  }[results.gold(result['base'])]
  return (
    '<div class="scroll"><table class="result"><thead><tr>'
    f'{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    f'<p class="note">{gold} Proxy: the reward that was trained on, on the '
    'same samples; the config below says whether it knows the gold reward, '
    'too. Scores are means of what could be scored.</p>'
  )


def _tiles(result):
  base, trained = result['base'], result['trained']
  kept = words.ratio(trained['diversity'], base['diversity'])
  speed = words.to_float(result['samples_per_second'])
  kind, shown = results.gold(trained), trained['strict']
  if kind is None:
    shown = trained['proxy']
  tiles = {
    f'gold {kind}' if kind else 'proxy': words.fixed(shown),
    'diversity kept': words.percent(kept),
    'KL to base': svg.number(words.to_float(result['kl'])),
    'wall time': words.duration(result['wall_seconds']),
    'samples / s': svg.number(speed),
    'peak memory': words.gibibytes(result['peak_rss_bytes']),
  }
  return page.facts('tiles', tiles)


def series(history: Sequence[Mapping], name: str):
  """(steps, values) of one metric; null is NaN."""
  pairs = [(h['step'], words.to_float(h[name])) for h in history if name in h]
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
  source = None if grid.source is None else image_lib.to_uint8(grid.source)
  cards = []
  for i, prompt in enumerate(grid.prompts):
    rows = [
      page.strip(
        label,
        media[i],
        *(None if v is None else np.asarray(v)[i] for v in (correct, reward)),
      )
      for label, media, correct, reward in (
        *([('source', source, None, None)] if source is not None else []),
        ('base', before, grid.correct_before, grid.reward_before),
        ('trained', after, grid.correct_after, grid.reward_after),
      )
    ]
    cards.append(
      f'<figure class="card"><figcaption>{html.escape(str(prompt))}'
      f'</figcaption>{"".join(rows)}</figure>'
    )
  shown = '' if source is None else ', and are shown the source above them'
  marks = ''
  if grid.correct_before is not None or grid.correct_after is not None:
    marks = (
      ' <span class="mark ok">correct</span> and '
      '<span class="mark no">wrong</span> by the gold reward.'
    )
  return (
    '<p class="note">The two policies start from the same seeds, column by '
    f'column{shown}.{marks}</p><div class="cards">{"".join(cards)}</div>'
  )


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
    'first metric after': words.duration(result['seconds_to_first_metric']),
    'git commit': result['git_commit'] or 'none (installed package)',
    'device': result['device'],
    'jax': result['jax_version'],
    **_speed(result.get('speed') or {}),
  }
  known = {'git_commit', 'device', 'jax'}
  rows |= {k: v for k, v in env.items() if k not in known}
  return page.facts('facts', rows)


def _speed(speed):
  """How far a step is from what the device can do, and where its work is."""
  if not speed.get('step_seconds'):
    return {}
  rows = {
    'a step': f'{svg.number(speed["step_seconds"])} s',
    'TFLOP/s of a device': svg.number(speed['tflops']),
  }
  if speed['mfu'] is not None:
    rows['of what it can do (MFU)'] = words.percent(speed['mfu'])
    rows['products alone'] = f'{svg.number(speed["bound_seconds"])} s'
  for what, key in (
    ('operations', 'shares'),
    ('time, of a profile', 'measured_shares'),
  ):
    if shares := speed.get(key):
      rows[what] = ', '.join(
        f'{k} {words.percent(x)}' for k, x in shares.items()
      )
  return rows


def _config(config):
  note = ''
  if isinstance(config, str):
    text = config
  else:
    config = config.to_dict() if hasattr(config, 'to_dict') else dict(config)
    text = yaml.safe_dump(files.plain(config), sort_keys=False, width=76)
    policy = config.get('policy', {})
    if (
      policy.get('guidance_gradient') == 'conditional'
      and policy.get('guidance_scale', 1.0) != 1
    ):
      note = (
        f'<p class="note">Guided at scale {policy["guidance_scale"]:g} with '
        'policy.guidance_gradient=conditional: updates follow the gradient of '
        'the conditional half alone, which is not that of the policy that '
        'sampled.</p>'
      )
  return (
    f'{note}<details><summary>All fields, as YAML</summary>'
    f'<pre><code>{html.escape(text)}</code></pre></details>'
  )


def _last(ys):
  return next((y for y in reversed(ys) if math.isfinite(y)), math.nan)
