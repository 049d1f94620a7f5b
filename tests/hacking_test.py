"""Since when a reward is hacked, by hand."""

import pytest

from gen_rl import hacking, results, testing


def line(step, gold, proxy, **more):
  return {'step': step, 'eval/strict': gold, 'eval/proxy': proxy, **more}


def test_since_the_evaluation_of_most_gold():
  """.8 to .6 of 100 verdicts: s^2 = (.16 + .24) / 100, 2 s = .126."""
  run = [
    line(0, 0.6, 0.5), {'step': 1, 'reward/score': 0.5}, line(10, 0.8, 0.6),
    line(20, 0.8, 0.7), line(30, 0.7, 0.8), line(40, 0.6, 0.9),
  ]  # fmt: skip
  found = hacking.since(run, 100)
  assert found == pytest.approx(
    dict(step=20, gold=0.8, gold_change=-0.2, proxy_change=0.2)
  )
  # of fewer samples .2 is chance: 2 s = .2 at 40
  assert hacking.since(run, 41) and not hacking.since(run, 39)
  text = 'Since update 20, where the gold reward was 0.800, the proxy rose by '
  assert hacking.says(found).startswith(text + '0.200')


def test_what_is_not_hacking():
  fell = [line(0, 0.8, 0.5), line(10, 0.4, 0.4)]  # both fell
  assert hacking.since(fell, 1000) is None
  rose = [line(0, 0.4, 0.5), line(10, 0.8, 0.9)]
  assert hacking.since(rose, 1000) is None
  lost = [line(0, None, 0.5), line(10, 0.8, None), line(20, 0.4, 0.9)]
  assert hacking.since(lost, 1000) is None
  assert hacking.since([], 1000) is None


def test_scores_have_no_chance_but_a_base():
  run = [line(0, -3.0, 0.5), line(10, 5.0, 0.6), line(20, -2.0, 0.9)]
  assert hacking.since(run, 9, verdicts=False) is None
  run.append(line(30, -4.0, 1.0))
  found = hacking.since(run, 9, verdicts=False)
  assert found['step'] == 10 and found['gold_change'] == -9


def test_a_run_says_it():
  result = testing.result()
  found = dict(step=45, gold=0.9, gold_change=-0.1, proxy_change=0.25)
  text = results.verdict(result | dict(hacked=found))
  assert 'Since update 45' in text and text.count('hacking') == 1
  assert 'hacking' not in results.verdict(result | dict(hacked=None))
