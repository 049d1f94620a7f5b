"""The main job and its variants, over seeds: results.csv and results.png.

  python experiments/flow_grpo/run.py                     # every arm and seed
  python experiments/flow_grpo/run.py --arms=main --seeds=0
  python experiments/flow_grpo/run.py --report            # table and plot only

The plot needs matplotlib (extra "test" or "colab"). Every run is the command a
user would type, in a process of its own, so its times are those a user would
see. Finished rows of results.csv are not run again; a run that was interrupted
resumes, unless the code was committed anew meanwhile.
"""

import csv
import datetime
import json
import os
import pathlib
import subprocess
import sys

from absl import app, flags

from gen_rl.utils import system

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Arms: what follows --config=configs/flow_grpo.py on the command line.
ARMS = {
  'main': '',
  'fast': ':fast',
  'all': ':all',
  'proxy': ':proxy',
  'proxy_kl': ':proxy,kl',
  'jpeg': ':jpeg',
}
TASKS = (
  'single_object', 'two_object', 'counting', 'colors', 'position',
  'color_attr', 'text',
)  # fmt: skip
FIELDS = (
  'arm', 'seed', 'date', 'steps', 'base_strict', 'strict', 'base_proxy',
  'proxy', 'base_diversity', 'diversity', 'kl', 'base_jpeg_bytes',
  'jpeg_bytes', 'wall_seconds',
  'seconds_to_first_metric', 'samples_per_second', 'peak_rss_bytes',
  'updates_skipped', 'device', 'jax_version', 'git_commit',
  *(f'base_{task}' for task in TASKS), *TASKS,
)  # fmt: skip

_ARMS = flags.DEFINE_list('arms', list(ARMS), 'Which arms to run.')
_SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'Which seeds.')
_RUNS = flags.DEFINE_string('runs', 'runs/experiments', 'Folder of the runs.')
_JPEG = flags.DEFINE_list(
  'jpeg_bytes', [], 'ARM,SEED,WORKDIR: print the sizes only.'
)
_REPORT = flags.DEFINE_bool('report', False, 'Only table and plot.')


def read() -> list[dict[str, str]]:
  """Rows of results.csv."""
  path = HERE / 'results.csv'
  if not path.exists():
    return []
  with path.open(newline='') as file:
    return list(csv.DictReader(file))


def write(rows: list[dict]) -> None:
  """Replaces results.csv as a whole."""
  partial = HERE / 'results.csv.partial'
  with partial.open('w', newline='') as file:
    writer = csv.DictWriter(file, FIELDS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
  os.replace(partial, HERE / 'results.csv')


def run(arm: str, seed: str) -> dict:
  """One run of the command line; the row of it."""
  workdir = folder(arm, seed)
  finished = workdir / 'result.json'
  finished.unlink(missing_ok=True)
  command = [
    sys.executable, '-m', 'gen_rl.main',
    f'--config=configs/flow_grpo.py{ARMS[arm]}', f'--config.seed={seed}',
    f'--workdir={workdir}',
  ]  # fmt: skip
  print('+', ' '.join(command), flush=True)
  subprocess.run(command, check=True, cwd=ROOT)
  if not finished.exists():
    raise SystemExit(f'{arm}, seed {seed} was stopped; run again to go on')
  result = json.loads(finished.read_text())
  row = {key: result[key] for key in FIELDS if key in result}
  for prefix, part in (('base_', result['base']), ('', result['trained'])):
    row |= {
      f'{prefix}{key}': part[key] for key in ('strict', 'proxy', 'diversity')
    }
    row |= {f'{prefix}{k}': v for k, v in part['strict_per_task'].items()}
  # In a process of its own: this one must not hold the accelerator.
  sizes = subprocess.run(
    [sys.executable, __file__, f'--jpeg_bytes={arm},{seed},{workdir}'],
    check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True,
  ).stdout.split()[-2:]  # fmt: skip
  row |= dict(zip(('base_jpeg_bytes', 'jpeg_bytes'), sizes))
  return row | dict(arm=arm, date=datetime.date.today().isoformat())


def folder(arm: str, seed: str) -> pathlib.Path:
  """Of a run; another one after each commit, so that no row mixes two."""
  commit = (system.git_commit() or 'installed')[:10]
  return (ROOT / _RUNS.value).resolve() / f'flow_grpo-{arm}-{seed}-{commit}'


def libjpeg_bytes(arm: str, seed: str, workdir: str) -> tuple[float, float]:
  """Mean file size of the evaluation's pictures, base and trained (Pillow)."""
  from configs import flow_grpo
  from gen_rl import assemble, inference
  from gen_rl.rewards import jpeg

  settings = flow_grpo.get_config(ARMS[arm].lstrip(':'))
  settings.seed = int(seed)
  built = assemble.setup(settings)
  evaluate, _ = assemble.make_evaluator(settings, built)

  def size(params) -> float:
    media = evaluate(params).media
    media = media.reshape(-1, *media.shape[2:])
    return sum(jpeg.libjpeg_bytes(picture) for picture in media) / len(media)

  base = assemble.initial_params(settings, built.policy)
  trained = inference.load_params(settings, workdir, built.policy)
  return size(base), size(trained.params)


def summary(rows: list[dict[str, str]]) -> str:
  """A Markdown table: mean over seeds, with the smallest and the largest."""

  def cell(rows, key, form='{:.3f}'):
    values = [float(row[key]) for row in rows if row[key] not in ('', 'None')]
    if not values:
      return '-'
    mean, low, high = sum(values) / len(values), min(values), max(values)
    return f'{form} ({form} to {form})'.format(mean, low, high)

  lines = [
    '| arm | seeds | gold: base | gold: trained | reward: base | '
    'reward: trained | diversity kept | KL, nats | JPEG bytes: base | '
    'JPEG bytes: trained | wall, s |',
    '| --- ' * 11 + '|',
  ]
  for arm in ARMS:
    found = [row for row in rows if row['arm'] == arm]
    if not found:
      continue
    for row in found:
      row['kept'] = float(row['diversity']) / float(row['base_diversity'])
    cells = [
      arm, str(len(found)), cell(found, 'base_strict'),
      cell(found, 'strict'), cell(found, 'base_proxy'), cell(found, 'proxy'),
      cell(found, 'kept', '{:.2f}'), cell(found, 'kl', '{:.1f}'),
      cell(found, 'base_jpeg_bytes', '{:.0f}'),
      cell(found, 'jpeg_bytes', '{:.0f}'),
      cell(found, 'wall_seconds', '{:.0f}'),
    ]  # fmt: skip
    lines.append('| ' + ' | '.join(cells) + ' |')
  main = [row for row in rows if row['arm'] == 'main']
  lines += ['', '| main, by task | base | trained |', '| --- ' * 3 + '|']
  for task in TASKS if main else ():
    values = cell(main, f'base_{task}'), cell(main, task)
    lines.append(f'| {task} | {" | ".join(values)} |')
  return '\n'.join(lines)


def plot(rows: list[dict[str, str]]) -> None:
  """results.png: gold accuracy over wall time, one line per run."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
  colors = dict(zip(ARMS, pyplot.rcParams['axes.prop_cycle'].by_key()['color']))
  for row in rows:
    name = f'flow_grpo-{row["arm"]}-{row["seed"]}-{row["git_commit"][:10]}'
    path = (ROOT / _RUNS.value).resolve() / name / 'metrics.jsonl'
    if not path.exists():
      continue
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    start = lines[0]['time']
    points = [
      (line['step'], line['time'] - start, line['eval/strict'])
      for line in lines
      if 'eval/strict' in line
    ]
    step, time, strict = zip(*points)
    label = row['arm'] if row['seed'] == '0' else None
    axes[0].plot(step, strict, color=colors[row['arm']], label=label)
    axes[1].plot(time, strict, color=colors[row['arm']])
  axes[0].set(xlabel='update', ylabel='held-out strict accuracy (gold oracle)')
  axes[1].set(xlabel='seconds, evaluations included')
  axes[0].legend()
  figure.tight_layout()
  figure.savefig(HERE / 'results.png', dpi=100)


def main(argv: list[str]) -> None:
  del argv
  if _JPEG.value:
    print(*libjpeg_bytes(*_JPEG.value))
    return
  for arm in _ARMS.value:
    if arm not in ARMS:
      raise app.UsageError(f'no arm {arm!r}; there are {", ".join(ARMS)}')
  rows = read()
  if not _REPORT.value:
    for seed in _SEEDS.value:
      for arm in _ARMS.value:
        if any((row['arm'], row['seed']) == (arm, seed) for row in rows):
          continue
        row = run(arm, seed)
        rows = [*read(), row]  # read again: another runner may have written
        write(rows)
        rows = read()
  print(summary(rows))
  plot(rows)


if __name__ == '__main__':
  app.run(main)
