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
  'heading, package, names',
  [
    ('Add a reward', rewards, ['reward/redness', 'reward/keeps']),
    ('Add a method', objectives, ['regression/log_prob']),
  ],
)
def test_examples_train(heading, package, names, tmp_path, monkeypatch):
  """The modules in a folder of the package, the lines in a config."""
  found = blocks(heading)
  assert len(found) == 2 * len(names)
  monkeypatch.setattr(package, '__path__', [*package.__path__, str(tmp_path)])
  c = flow_grpo.get_config('tiny')
  for i, (module, lines) in enumerate(zip(found[::2], found[1::2])):
    (tmp_path / f'written_by_a_reader_{i}.py').write_text(module)
    exec(lines, dict(c=c))
  train.train_and_evaluate(c, str(tmp_path / 'run'))
  history = metrics.read(tmp_path / 'run' / metrics.FILE)
  for name in names:
    values = [line[name] for line in history if name in line]
    assert len(values) == c.steps and np.isfinite(values).all()
  for i in range(len(names)):
    sys.modules.pop(f'{package.__name__}.written_by_a_reader_{i}')


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
