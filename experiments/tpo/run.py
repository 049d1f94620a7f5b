"""One picture, two prompts, at a third of the main job.

python experiments/tpo/run.py
python experiments/tpo/run.py --report

Of held-out pictures, each under its prompt and a false one, columns say what
the run learned of them, see `told_apart`.
"""

import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

# Held-out pairs are measured 36 at a time, each at 16 times and noises.
PARTS, PART, DRAWS = 7, 36, 16
# Pairs an update and their times are those of configs/diffusion_dpo.py.
EQUAL = study.SHORT | {'data.prompts_per_step': 42, 'policy.time_mean': 0.0}
ARMS = {
  'tdpo': study.Arm(
    'configs/tpo.py',
    'pairs of prompts, the loss of the false one bounded',
    study.SHORT,
  ),
  'uncapped': study.Arm(
    'configs/tpo.py:uncapped', 'without the bound', study.SHORT
  ),
  'tkto': study.Arm(
    'configs/tpo.py:tkto', 'labels in place of pairs', study.SHORT
  ),
  'color': study.Arm(
    'configs/tpo.py:color', 'false prompts differ in a colour only', study.SHORT
  ),
  'position': study.Arm(
    'configs/tpo.py:position',
    'false prompts differ in a place only',
    study.SHORT,
  ),
  'sft': study.Arm(
    'configs/tpo.py:sft', 'matching loss under the true prompt', study.SHORT
  ),
  'dpo': study.Arm(
    'configs/diffusion_dpo.py',
    'Diffusion-DPO: 42 pairs of pictures an update, by the oracle',
    study.SHORT,
    shared='diffusion_dpo/dpo',
  ),
  'kto': study.Arm(
    'configs/diffusion_dpo.py:kto',
    'Diffusion-KTO: labels of the same',
    study.SHORT,
    shared='diffusion_dpo/kto',
  ),
  'equal_tdpo': study.Arm(
    'configs/tpo.py', 'as many pairs as **dpo**, at times drawn as there', EQUAL
  ),
  'equal_tkto': study.Arm(
    'configs/tpo.py:tkto', 'likewise, to compare with **kto**', EQUAL
  ),
}
CLAIMS = (
  study.Claim(
    'false prompts beat supervised training on the same pictures',
    'held-out strict accuracy',
    'sft.strict',
    'tdpo.strict',
  ),
  study.Claim(
    'pairs beat labels',
    'held-out strict accuracy',
    'tkto.strict',
    'tdpo.strict',
  ),
  study.Claim(
    'the bound on the false prompt matters',
    'held-out strict accuracy',
    'uncapped.strict',
    'tdpo.strict',
  ),
  study.Claim(
    'TDPO beats Diffusion-DPO in as many updates, of three times the pairs',
    'held-out strict accuracy',
    'dpo.strict',
    'tdpo.strict',
  ),
  study.Claim(
    'TKTO beats Diffusion-KTO in as many updates, of three times the pairs',
    'held-out strict accuracy',
    'kto.strict',
    'tkto.strict',
  ),
  study.Claim(
    'TDPO beats Diffusion-DPO in as many updates, of as many pairs',
    'held-out strict accuracy',
    'dpo.strict',
    'equal_tdpo.strict',
  ),
  study.Claim(
    'TKTO beats Diffusion-KTO in as many updates, of as many pairs',
    'held-out strict accuracy',
    'kto.strict',
    'equal_tkto.strict',
  ),
  study.Claim(
    'false prompts of all kinds teach more than false places alone',
    'held-out strict accuracy',
    'position.strict',
    'tdpo.strict',
  ),
)


def told_apart(policy, base, trained, traj, keys) -> dict[str, Any]:
  """What parameters say of pictures under a true and a false prompt.

  With m the matching error, the mean over times and noises that both prompts
  share, the implicit reward of a prompt is what it fell by, m_base - m.

  Args:
    policy: with the capabilities `noised` and `velocity_at`.
    base: parameters a run began with.
    trained: its last ones.
    traj: rows [2 n], of a picture under its prompt and under a false one.
    keys: [2 n] of times and noises, the same for both rows of a pair.

  Returns:
    Arrays [n]: implicit_accuracy, whether the true prompt has the larger
    implicit reward; base_classified and classified, whether its error is the
    smaller one; true_shift and false_shift, what the two errors rose by.
  """
  from gen_rl.diffusion import process

  def error(params):
    at = policy.ops['noised'](params, traj, keys, DRAWS)
    v = policy.ops['velocity_at'](params, traj, at)
    return process.matching_error(v, at).mean(1).reshape(-1, 2)

  before, after = error(base), error(trained)
  shift = after - before
  return dict(
    implicit_accuracy=shift[:, 0] < shift[:, 1],
    base_classified=before[:, 0] < before[:, 1],
    classified=after[:, 0] < after[:, 1],
    true_shift=shift[:, 0],
    false_shift=shift[:, 1],
  )


def of_held_out(workdir: pathlib.Path, arm: str, seed: str) -> dict[str, Any]:
  """Means over held-out renders; the same pairs for all arms and seeds."""
  del arm, seed
  import jax
  import numpy as np

  from gen_rl import assemble, inference, initial, rollout
  from gen_rl.data import pictures, pipeline, prompts

  config = study.load_config(workdir)
  config.policy.time_mean = 1.0  # as in configs/tpo.py
  built = assemble.setup(config)
  source = prompts.shapes_contrasts('heldout')
  batches = pipeline.prompt_batches(
    source, PART, 0, built.tokenizer, config.data.length, balance=True
  )
  base = initial.params(config, built.policy)
  trained = inference.load_params(config, str(workdir), built.policy).params
  draw = pictures.prompt_pairs(2)

  @jax.jit
  def measure(base, trained, batch, step):
    rows = rollout.make_rows(batch, 2, jax.random.key(0), step)
    traj = rollout.given(*draw(rows), rows.group)
    return told_apart(built.policy, base, trained, traj, rows.group_keys)

  parts = [
    jax.device_get(measure(base, trained, next(batches)[0], np.int32(step)))
    for step in range(PARTS)
  ]
  return {
    name: float(np.mean([part[name] for part in parts])) for name in parts[0]
  }


STUDY = study.Study(
  file=__file__,
  title='TPO: one picture, two prompts',
  arms=ARMS,
  extra=of_held_out,
  columns=dict(
    implicit_accuracy='implicit accuracy',
    base_classified='prompts told apart: base',
    classified='prompts told apart: trained',
    true_shift='error of true prompts rose by',
    false_shift='of false ones',
  ),
  claims=CLAIMS,
  code={
    'TPO': (
      'configs/tpo.py',
      'gen_rl/data/prompts/worlds.py:shapes_contrasts',
      'gen_rl/data/pictures/worlds.py:prompt_pairs',
      'gen_rl/data/pictures/given.py:with_wrong',
      'gen_rl/worlds/grammar.py:mutations',
    )
  },
)

if __name__ == '__main__':
  study.main(STUDY)
