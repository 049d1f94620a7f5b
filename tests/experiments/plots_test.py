"""The mean over seeds; runs whose curve is gone; a picture."""

import numpy as np

from experiments import plots, study

STUDY = study.Study('run.py', 'Demo', {'a': study.Arm('c', ''),
                                       'b': study.Arm('c', '')})  # fmt: skip
ENDS = dict(
  arm='b', seed='0', git_commit='x' * 40, steps='4', wall_seconds='9',
  seconds_to_first_metric='1', base_strict='0.5', strict='0.7',
  base_proxy='-1', proxy='-0.5',
)  # fmt: skip


def test_mean_is_over_what_all_seeds_have():
  a = np.array([[0, 0, 0.5, 0.1], [2, 4, 0.6, 0.2], [3, 5, 0.9, 0.3]])
  b = np.array([[0, 0, 0.5, 0.3], [2, 6, 0.8, 0.4], [4, 9, 0.9, 0.5]])
  np.testing.assert_allclose(
    plots.mean([a, b]), [[0, 0, 0.5, 0.2], [2, 5, 0.7, 0.3]]
  )


def test_a_row_without_its_folder_is_two_points(tmp_path):
  points = plots.points(STUDY, ENDS, tmp_path)
  assert points.tolist() == [[0, 0, 0.5, -1], [4, 8, 0.7, -0.5]]


def test_plot(tmp_path):
  demo = STUDY._replace(file=str(tmp_path / 'run.py'))
  plots.plot(demo, [], tmp_path)
  assert not (tmp_path / 'results.png').exists()
  curve = '0 0 0.5 0.1; 2 4 0.6 0.2; 4 9 0.7 0.3'
  rows = [dict(arm='a', seed=str(i), curve=curve) for i in range(3)]
  plots.plot(demo, [*rows, ENDS, dict(arm='gone', seed='0')], tmp_path)
  assert (tmp_path / 'results.png').stat().st_size > 10_000
