"""Rows that teach nothing: what it saves to leave them out of the update.

python experiments/update_rows/run.py
python experiments/update_rows/run.py --report  # tables and plot only

What is taken for as much time was measured before, see LONGER: the times of
these runs mean something where one at a time has the machine.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from experiments import study

CONFIG = 'configs/flow_grpo.py'
SHORT = {**study.SHORT, 'data.prompts_per_step': 21}
HALF = {'update_rows': 126, 'microbatches': 2}
# An update of half the rows takes 0.67 of the time: medians of 1.96 and 2.91 s
# at twice as many prompts, on two idle cores.
LONGER = {'steps': 90, 'eval.every': 30, 'checkpoint.every': 90, 'ema': 0.93}
ARMS = {
  'all': study.Arm(CONFIG, 'the update takes all 252 rows', SHORT),
  'half': study.Arm(
    CONFIG, 'the 126 of most advantage, in as many updates', {**SHORT, **HALF}
  ),
  'half_longer': study.Arm(
    CONFIG, 'the same, in as much time', {**SHORT, **HALF, **LONGER}
  ),
  'ends': study.Arm(
    CONFIG,
    'the best 3 and the worst 3 of 12, in as much time',
    {
      **SHORT,
      **HALF,
      **LONGER,
      'advantage.name': 'top_bottom',
      'advantage.n': 3,
    },
  ),
}
CLAIMS = (
  study.Claim(
    'the half of most advantage does as well as all, in as many updates',
    'held-out strict accuracy', 'all.strict', 'half.strict',
    margin=0.02,
  ),
  study.Claim(
    'in as much time it does better',
    'held-out strict accuracy', 'all.strict', 'half_longer.strict',
  ),
  study.Claim(
    'so do the ends of every group',
    'held-out strict accuracy', 'all.strict', 'ends.strict',
  ),
)  # fmt: skip

STUDY = study.Study(
  file=__file__,
  title='Rows that teach nothing cost nothing',
  arms=ARMS,
  claims=CLAIMS,
)

if __name__ == '__main__':
  study.main(STUDY)
