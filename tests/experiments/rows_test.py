"""results.csv: nothing is lost."""

import concurrent.futures
import math

from experiments import plots, rows, study


def test_processes_that_append_at_once_lose_no_row(tmp_path):
  def add(i: int):
    for j in range(5):
      rows.append(tmp_path, {'arm': f'a{i}', 'seed': str(j), f'new{i}': i * j})

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(add, range(8)))
  found = rows.read(tmp_path)
  assert len(found) == 40 and len({(r['arm'], r['seed']) for r in found}) == 40
  (row,) = [r for r in found if (r['arm'], r['seed']) == ('a3', '4')]
  assert row['new3'] == '12' and row['new2'] == ''
  assert not (tmp_path / 'results.csv.part').exists()


def test_a_second_row_of_an_arm_and_seed_is_not_added(tmp_path):
  rows.append(tmp_path, dict(arm='a', seed='0', strict=0.5))
  rows.append(tmp_path, dict(arm='a', seed='0', strict=0.9))
  assert [row['strict'] for row in rows.read(tmp_path)] == ['0.5']


def test_a_curve_and_back(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text(
    '{"step": 0, "time": 5.0, "eval/strict": 0.5, "eval/proxy": 0.0}\n'
    '{"step": 1, "time": 6.0, "reward/score": 0.1}\n'
    '{"step": 2, "time": 8.0, "eval/strict": 0.75}\n'
  )
  text = rows.curve(tmp_path)
  assert text == '0 0.0 0.5000 0.0000; 2 3.0 0.7500 nan'
  demo = study.Study(str(tmp_path / 'run.py'), 'Demo', {})
  points = plots.points(demo, dict(curve=text), tmp_path)
  assert points[:, :3].tolist() == [[0, 0, 0.5], [2, 3, 0.75]]
  assert points[0, 3] == 0 and math.isnan(points[1, 3])
  assert rows.curve(tmp_path / 'nowhere') == ''
