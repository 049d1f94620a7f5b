"""The main job and its variants, over seeds: results.csv and results.png.

  python experiments/flow_grpo/run.py                     # every arm and seed
  python experiments/flow_grpo/run.py --arms=main --seeds=0
  python experiments/flow_grpo/run.py --report            # tables and plot only

The plot needs matplotlib (extra "test" or "colab").
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study
from gen_rl.worlds import shapes_world

CONFIG = 'configs/flow_grpo.py'
GREY = 0.15  # largest difference of a background's channels
ARMS = {
  'main': study.Arm(
    CONFIG, 'a random window of 3 of the 5 early steps trained'
  ),
  'no_kl': study.Arm(
    CONFIG, 'main without its KL term', {'objective.kl.weight': 0.0}
  ),
  'fast': study.Arm(f'{CONFIG}:fast', 'a window of 2'),
  'all': study.Arm(
    f'{CONFIG}:all', 'all 7 noisy steps trained, as Flow-GRPO does'
  ),
  'short': study.FLOW_GRPO._replace(shared=''),
  'proxy': study.Arm(
    f'{CONFIG}:proxy',
    'trained on the learned detector, all parameters; the oracle only judges',
  ),
  'proxy_kl': study.Arm(
    f'{CONFIG}:proxy,kl', 'the same with a KL term to the base'
  ),
  'jpeg': study.Arm(f'{CONFIG}:jpeg', 'trained on the size of JPEG files'),
}
CLAIMS = (
  study.Claim(
    'RL on the oracle teaches combinations that no training saw',
    'held-out strict accuracy', 'main.base_strict', 'main.strict',
  ),
  study.Claim(
    'a window of 2 steps does as well as all 7, for less',
    'held-out strict accuracy', 'all.strict', 'fast.strict',
    margin=0.02,
  ),
  study.Claim(
    'a KL term keeps a learned reward from being fooled',
    'held-out strict accuracy', 'proxy.strict', 'proxy_kl.strict',
  ),
)  # fmt: skip


def of_pictures(workdir: pathlib.Path, arm: str, seed: str) -> dict:
  """Of the evaluation's pictures, base and trained.

  Their mean file size by libjpeg, through Pillow, and the standard deviation
  of their grey levels of background, over all pictures: no reward asks for a
  level, so one that is lost is diversity lost.
  """
  del arm, seed
  import numpy as np

  from gen_rl import assemble, inference, initial
  from gen_rl.rewards import jpeg

  config = study.load_config(workdir)
  built = assemble.setup(config)
  evaluate, _ = assemble.make_evaluator(config, built)

  def background(picture) -> float:
    return np.median(picture.mean(-1)[np.ptp(picture, -1) < GREY])

  def look(params, prefix: str) -> dict[str, float]:
    media = evaluate(params).media
    media = media.reshape(-1, *media.shape[2:])
    return {
      f'{prefix}jpeg_bytes': np.mean([jpeg.libjpeg_bytes(x) for x in media]),
      f'{prefix}background_sd': np.std([background(x) for x in media]),
    }

  base = initial.params(config, built.policy)
  trained = inference.load_params(config, workdir, built.policy)
  return look(base, 'base_') | look(trained.params, '')


STUDY = study.Study(
  file=__file__,
  title='The main job and its variants',
  arms=ARMS,
  extra=of_pictures,
  columns={
    'base_jpeg_bytes': 'JPEG bytes: base',
    'jpeg_bytes': 'JPEG bytes: trained',
    'base_background_sd': 'background sd: base',
    'background_sd': 'background sd: trained',
  },
  by_task='main',
  tasks=shapes_world.shapes().tasks,
  claims=CLAIMS,
  code={
    'Flow-GRPO': (
      CONFIG,
      'gen_rl/objectives/policy_gradient.py:clipped_pg',
      'gen_rl/diffusion/transitions.py:flow_sde',
      'gen_rl/advantages/group.py:grpo',
    )
  },
)

if __name__ == '__main__':
  study.main(STUDY)
