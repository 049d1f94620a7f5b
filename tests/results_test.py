import json
import re

import numpy as np
import pytest

from gen_rl import results, testing


def test_json_schema(tmp_path):
  result = dict(testing.result(), kl=np.float64('nan'), extra=np.arange(2))
  path = results.write_json(tmp_path, result)
  read = json.loads(path.read_text())
  assert set(results.RESULT_KEYS) <= set(read)
  assert read['kl'] is None and read['extra'] == [0, 1]
  assert read['trained']['strict'] == pytest.approx(0.914)
  types = dict(
    schema_version=int, config_name=str, seed=int, steps=int,
    wall_seconds=float, seconds_to_first_metric=float,
    samples_per_second=float, peak_rss_bytes=int, updates_skipped=int,
    device=str, cpus=int, jax_version=str,
  )  # fmt: skip
  assert all(type(read[k]) is t for k, t in types.items())


def test_check_names_what_is_missing(tmp_path):
  result = testing.result()
  del result['kl'], result['base']['proxy']
  with pytest.raises(ValueError, match='lacks kl, base.proxy'):
    results.write_json(tmp_path, result)
  assert not list(tmp_path.iterdir())
  with pytest.raises(ValueError, match='schema_version'):
    results.check(dict(testing.result(), schema_version=9))


def test_table_rows():
  rows = [
    re.split(r'\s{2,}', line)
    for line in results.table(testing.result()).splitlines()
  ]
  assert ['counting', '0.500', '0.900', '+0.400'] in rows
  assert ['all tasks (gold)', '0.620', '0.914', '+0.294'] in rows
  assert ['diversity (kept)', '0.200', '0.190', '95%'] in rows


def test_verdict_says_what_went_wrong():
  assert results.verdict(testing.result()) == (
    'Held-out strict accuracy 0.620 → 0.914 (+29.4 points) after 150 updates '
    'in 7 min 41 s. Diversity is 95% of the base.'
  )
  bad = testing.result()
  bad['trained'].update(strict=0.5, diversity=0.1)
  bad['updates_skipped'] = 1
  for part, lost in ((bad['base'], 0), (bad['trained'], 7)):
    part.update(evaluated=40, invalid=dict(gold=lost, proxy=0))
  text = results.verdict(bad)
  assert '0 of 40 samples of the base and 7 of 40 of the trained' in text
  assert ('not scored (gold)', '0', '7', '+7') in results.rows(bad)
  assert not any(
    'proxy)' in row[0] and 'scored' in row[0] for row in results.rows(bad)
  )
  assert 'reward hacking' in text and 'below the 80%' in text
  assert '1 update skipped' in text and '(−12.0 points)' in text


def test_prompts_that_are_trained_on_are_not_called_held_out():
  result = testing.result() | dict(trained_on=0.25)
  text = results.verdict(result)
  assert text.startswith('Evaluation strict accuracy')
  assert 'Training draws 25% of the prompts of the evaluation, too.' in text
  unknown = results.verdict(result | dict(trained_on=None))
  assert unknown.startswith('Evaluation') and 'draws' not in unknown


def test_a_gold_reward_without_verdicts_has_no_accuracy():
  result = testing.result()
  for part, score in ((result['base'], -0.15), (result['trained'], 0.1)):
    part.update(gold='score', strict=score)
  assert results.verdict(result).startswith(
    'Held-out gold score -0.150 → 0.100 (+0.250) after 150 updates in'
  )
  assert results.gold(testing.result()['base']) == 'accuracy'


def test_without_a_gold_reward_the_proxy_is_reported_and_it_is_said():
  result = testing.result()
  for part, proxy in ((result['base'], 0.25), (result['trained'], 0.5)):
    part.update(gold=None, strict=None, strict_per_task={}, proxy=proxy)
  text = results.verdict(result)
  assert 'proxy 0.250 → 0.500 (+0.250)' in text and 'no gold reward' in text
  assert 'hacking' not in text and 'accuracy' not in text
  assert not any('gold' in row[0] for row in results.rows(result))


def test_table_without_numbers():
  result = testing.result()
  for part in (result['base'], result['trained']):
    part.update(strict=None, strict_per_task={}, proxy=None, diversity=None)
  result.update(kl=float('nan'), samples_per_second=None)
  assert 'nan' not in results.table(result).lower()
