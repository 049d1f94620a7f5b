"""Is a search worth its calls? The evaluation with and without it.

`compare` runs the prompts of the evaluation twice, on the same noise: drawn as
ever, and found by `config.search`. As the functions of `inference` do, it takes
a checkpoint of the workdir, or what a run of the config would start from.
"""

import dataclasses
import pathlib

import ml_collections

from gen_rl import assemble, build, evals, inference, results, searches
from gen_rl.data import feeds
from gen_rl.evaluation import Evaluation
from gen_rl.selection import Cost
from gen_rl.utils import files, image


def compare(
  config: ml_collections.ConfigDict, workdir: str, step: int | None = None
) -> tuple[Evaluation, Evaluation]:
  """Prints a table, writes `workdir`/search.json and `workdir`/search.png.

  search.json holds

    config_name, eval_seed, prompts, samples (per prompt), denoising_steps,
    step, source   as eval.json, see `inference.evaluate`
    search         the part of the config
    drawn, found   what `results` says of a policy, without and with the search;
                   `calls` of both are those for one sample

  The picture shows the first sample of the first `eval.shown` prompts, both
  ways.

  Args:
    config: of the run.
    workdir: of the run.
    step: see `inference.load_params`.

  Returns:
    (without, with) the search.

  Raises:
    ConfigError: config.search names none, or one that cannot be.
    CheckpointError, WeightsError: see `inference.load_params`.
    OSError: the workdir cannot be written.
  """
  if not config.search.name:
    raise build.ConfigError(
      '--mode=search needs a search: --config.search.name='
      f'{" or ".join(build.names(searches))}'
    )
  folder = pathlib.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  spec = build.plain(config.search)
  built = assemble.setup(config)
  runs = [
    assemble.make_evaluator(evals.changed(config, dict(search=part)), built)[0]
    for part in (dict(name=''), spec)
  ]
  feeds.release(built)
  loaded = inference.load_params(config, workdir, built.policy, step)
  print(f'Searching with {loaded.source}', flush=True)
  drawn, found = (run(loaded.params) for run in runs)
  segments = built.segments
  drawn = drawn._replace(calls=Cost(segments.steps * segments.calls))
  record = dict(
    **inference.circumstances(config, loaded, found),
    search=spec,
    drawn=drawn.summary(),
    found=found.summary(),
  )
  print(table(drawn, found, spec['name']), flush=True)
  files.write_json(folder / 'search.json', record)
  image.save_png(
    folder / 'search.png', pictures(drawn, found, config.eval.shown)
  )
  print(f'Written: {folder / "search.json"}, {folder / "search.png"}')
  return drawn, found


def table(drawn: Evaluation, found: Evaluation, name: str) -> str:
  """What both reach and what a sample takes, as plain text."""
  rows = results.compare(drawn.summary(), found.summary())
  before, after = drawn.calls, found.calls
  for label, b in dataclasses.asdict(after).items():
    a = getattr(before, label)
    if a or b:
      rows.append((f'{label.replace("_", " ")} a sample', f'{a}', f'{b}', ''))
  return results.aligned([('', 'drawn', name, 'change'), *rows])


def pictures(drawn: Evaluation, found: Evaluation, prompts: int):
  """Before and after, uint8 [H W 3]; of points, one picture a prompt."""
  before, after = drawn.shown(prompts), found.shown(prompts)
  first = lambda x: None if x is None else x[:, 0]
  return image.before_after(
    before.pictures[:, 0],
    after.pictures[:, 0],
    captions=found.texts[:prompts],
    rewards=(before.reward[:, 0], after.reward[:, 0]),
    correct=None
    if after.correct is None
    else (first(before.correct), first(after.correct)),
    titles=('drawn', 'found'),
  )
