"""Training, top to bottom: config in, checkpoints, metrics and a report out."""

import contextlib
import functools
import signal
import time
from typing import Any

import jax
import ml_collections

from gen_rl import (
  assemble,
  build,
  checks,
  embed,
  estimate,
  initial,
  pace,
  profiles,
  run_folder,
)
from gen_rl.data import feeds
from gen_rl.rewards import combine
from gen_rl.run import Evaluations, Run
from gen_rl.utils import programs, terminal


def train_and_evaluate(
  config: ml_collections.ConfigDict,
  workdir: str,
  own_rewards: combine.Weighted | None = None,
  started: float | None = None,
  profile: str = '',
  kept: programs.Programs | None = None,
) -> dict[str, Any]:
  """Trains from the newest checkpoint of `workdir`, or from the start.

  Args:
    config: see configs/base.py.
    own_rewards: {label: (Reward, weight)} besides those the config names, for
      rewards that live in a notebook.
    workdir: folder for checkpoints, metrics.jsonl, TensorBoard files,
      result.json and report.html.
    started: `time.monotonic()` from which wall time counts; default now.
    profile: 'START:STOP', updates to record, see `profiles`; '': none.
    kept: programs of runs before, which are not traced again; of one device,
      and without `own_rewards`.

  Returns:
    What result.json holds.

  Raises:
    ConfigError, CheckpointError: one sentence each.
    FloatingPointError: too many updates in a row were not finite.
    RewardError: a reward that is none, or that scored no row for too long.
    SystemExit: code 0 after SIGTERM, with the state saved.
  """
  if '://' in workdir:
    raise build.ConfigError(
      f'--workdir={workdir} is no folder of a file system; mount the bucket '
      '(experiments/launch/mount.sh does) and give the path it has there'
    )
  started = time.monotonic() if started is None else started
  recorder = profiles.Profile(profile, workdir, config.steps)
  try:
    built = assemble.setup(config, own_rewards)
    layout = assemble.make_layout(config, built)
    step, tx, advantage = assemble.make_step(config, built, layout)
  except build.ConfigError as error:
    raise checks.explain(error, config) from None
  keep = {}
  if kept and not own_rewards and layout.mesh.size == 1 and not layout.offload:
    one = functools.partial(kept.keep, device=layout.mesh.devices.item())
    step = step._replace(
      train_step=one('train_step', step.train_step, about=pace.count)
    )
    keep = dict(keep=one)
  init = functools.partial(
    initial.state, config, built, tx=tx, advantage=advantage
  )
  with checks.together():
    shapes = initial.shapes(config, built.policy)
  checks.memory(
    jax.eval_shape(init, shapes),
    layout,
    beside=estimate.encoder_bytes(
      config, built, list(layout.mesh.devices.flat)
    ),
  )
  with run_folder.owned(workdir), terminal.kept_open():
    embed.ahead(config, built, workdir)
    run = Run(
      config, workdir, built, layout, step, init, started, recorder, **keep
    )
    if result := run.ended():
      return result
    run.prepare()
    with layout.scope():
      return run.finish(*loop(run))


def loop(run: Run) -> tuple[Evaluations, Evaluations, float | None]:
  """(evaluations of the base and of what was trained, KL between them).

  Args:
    run: or what has its methods, such as several seeds in one program
      (experiments/vmapped.py).
  """
  config, asked = run.config, []
  with contextlib.ExitStack() as stack:
    before = signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    stack.callback(signal.signal, signal.SIGTERM, before)
    stack.callback(run.close)
    # Not before: a writer forgets what came after the checkpoint.
    writer = stack.enter_context(run.writer())
    base = None
    if run.start == 0:
      base, _ = run.evaluate(writer, 0)
      run.check(writer, stop=bool(asked))
    run.line.note('compiling the update, and running the first')
    for done in range(run.start + 1, config.steps + 1):
      run.update(writer, done)
      last = done == config.steps
      due = [] if last else run.due(done)
      saves = last or done % config.checkpoint.every == 0
      if due or saves:
        run.settle(writer)
      if due:
        run.evaluate(writer, done, run.trained(), due)
      if saves:
        run.save()
      run.check(writer, stop=bool(asked))
    run.line.close()
    feeds.release(run.built)
    params = run.trained()
    trained, kl = run.evaluate(writer, config.steps, params)
    if base is None:
      base = run.evaluate_base()
    run.check(writer, stop=bool(asked))
    run.export(params, trained)
  return base, trained, kl
