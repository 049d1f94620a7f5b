"""What the README says to write works as it says."""

import pathlib
import re
import sys

import numpy as np
import pytest

from configs import flow_grpo
from gen_rl import metrics, objectives, results, rewards, train

README = pathlib.Path(__file__).parents[1] / 'README.md'


def blocks(heading: str) -> list[str]:
  """The Python blocks of a section."""
  section = README.read_text().split(f'\n### {heading}\n')[1].split('\n### ')[0]
  return re.findall(r'^```python\n(.*?)^```$', section, re.M | re.S)


@pytest.mark.parametrize(
  'heading, package, metric',
  [
    ('Add a reward', rewards, 'reward/redness'),
    ('Add a method', objectives, 'regression/log_prob'),
  ],
)
def test_examples_train(heading, package, metric, tmp_path, monkeypatch):
  """The module in a folder of the package, the lines in a config."""
  module, lines = blocks(heading)
  (tmp_path / 'written_by_a_reader.py').write_text(module)
  monkeypatch.setattr(package, '__path__', [*package.__path__, str(tmp_path)])
  c = flow_grpo.get_config('tiny')
  exec(lines, dict(c=c))
  train.train_and_evaluate(c, str(tmp_path / 'run'))
  history = metrics.read(tmp_path / 'run' / metrics.FILE)
  values = [line[metric] for line in history if metric in line]
  assert len(values) == c.steps and np.isfinite(values).all()
  sys.modules.pop(f'{package.__name__}.written_by_a_reader')


def test_the_schema_of_results_is_that_of_the_readme():
  """Every key of result.json is in the table, and the table names no other."""
  section = README.read_text().split('\n### result.json\n')[1]
  table = section.split('\n\nA number nobody')[0]
  first = [line.split('|')[1] for line in table.splitlines() if '`' in line]
  named = re.findall(r'`(\w+)`', ' '.join(first))
  assert sorted(named) == sorted(results.RESULT_KEYS + results.OPTIONAL_KEYS)
  (row,) = [line for line in table.splitlines() if '`trained`' in line]
  for key in results.POLICY_KEYS:
    assert f'`{key}`' in row
