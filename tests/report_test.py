import html.parser

import ml_collections
import numpy as np
import pytest

from gen_rl import metrics, report, results, testing

HISTORY = [
  {'step': s, 'time': 0.0, 'samples': 96 * s, 'reward/score': s / 10,
   'reward/std': 0.1, 'optim/grad_norm': None if s == 2 else 1.0}
  | ({'eval/strict': 0.6 + s / 50, 'eval/proxy': 0.7} if s % 5 == 0 else {})
  for s in range(11)
]  # fmt: skip
COMMANDS = {'Run it again': 'python -m gen_rl.main --config=x'}
EVIL = '<script>alert("x")</script> & "quoted"'
VOID = {'meta', 'img', 'br', 'hr', 'link', 'input'}


class Page(html.parser.HTMLParser):
  """Tags, attributes, text; checks that tags are balanced."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.open, self.text, self.headings = [], [], [], []
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)
    if self.open and self.open[-1] == 'h2':
      self.headings.append(data)


def comparison(p=2, n=3, size=8):
  rng = np.random.default_rng(0)
  return report.Comparison(
    prompts=['two red circles', EVIL][:p],
    before=rng.random((p, n, size, size, 3)),
    after=rng.random((p, n, size, size, 3)),
    correct_before=np.zeros((p, n), bool),
    correct_after=np.ones((p, n), bool),
    reward_before=np.zeros((p, n)),
    reward_after=np.ones((p, n)),
  )


@pytest.fixture
def page(tmp_path):
  path = report.write_report(
    tmp_path,
    testing.result() | dict(git_commit='c0ffee'),
    HISTORY,
    {'Held-out prompts': comparison(), 'Sheet': np.zeros((9, 9, 3))},
    ml_collections.ConfigDict({'lr': 1e-4, 'note': EVIL, 'shape': (2, 3)}),
    {'python': '3.11', 'cpus': 2},
    COMMANDS,
  )
  assert path == tmp_path / 'report.html'
  return Page(path.read_text())


def test_report_is_self_contained(page):
  for tag, attrs in page.tags:
    assert tag not in ('script', 'link', 'iframe', 'object')
    for name in ('src', 'href', 'srcset', 'xlink:href', 'data', 'action'):
      assert attrs.get(name, 'data:').startswith('data:'), attrs
  style = ''.join(page.text)
  assert '@import' not in style and 'url(' not in style


def test_report_has_all_sections(page):
  assert page.headings == [
    'Result', 'Curves', 'Held-out prompts', 'Sheet', 'Run it again',
    'Environment', 'Config',
  ]  # fmt: skip
  tags = [t for t, _ in page.tags]
  # Reward, gradient norm, held-out; nothing for what was not measured.
  assert tags.count('svg') == 3
  assert tags.count('img') == 2 * 2 * 3 + 1
  text = ' '.join(''.join(page.text).split())
  for words in (COMMANDS['Run it again'], 'lr: 0.0001', 'c0ffee'):
    assert words in text
  assert results.verdict(testing.result()) in text


def test_report_escapes_what_others_wrote(page):
  assert EVIL in page.text  # as text of the caption, not as a tag
  assert any(EVIL in t for t in page.text if 'lr:' in t)


def test_borders_follow_the_oracle(page):
  css = [a['class'] for t, a in page.tags if t == 'img']
  assert css == (['no px'] * 3 + ['ok px'] * 3) * 2 + ['sheet px']


def test_what_a_policy_was_shown_stands_above_what_it_made(tmp_path):
  source = comparison()._replace(source=np.zeros((2, 3, 4, 4, 3)))
  path = report.write_report(
    tmp_path, testing.result(), [], {'x': source}, {}, {}, {}
  )
  page = Page(path.read_text())
  css = [a['class'] for t, a in page.tags if t == 'img']
  assert css == ([' px'] * 3 + ['no px'] * 3 + ['ok px'] * 3) * 2
  assert 'the source above them' in ''.join(page.text)


def test_report_without_history_grids_or_numbers(tmp_path):
  result = testing.result()
  for part in (result['base'], result['trained']):
    part.update(strict=None, strict_per_task={}, proxy=None, diversity=None)
  result.update(kl=float('nan'), samples_per_second=None)
  path = report.write_report(tmp_path, result, [], {}, {}, {}, {})
  text = ''.join(Page(path.read_text()).text)
  assert 'nan' not in text.lower() and 'conditional half' not in text
  biased = dict(
    policy=dict(guidance_gradient='conditional', guidance_scale=4.5)
  )
  path = report.write_report(tmp_path, result, [], {}, biased, {}, {})
  assert 'scale 4.5' in path.read_text()


def test_large_pictures_are_shrunk(tmp_path):
  path = report.write_report(
    tmp_path, testing.result(), [], {'x': comparison(1, 1, 600)}, 'a: 1', {}, {}
  )
  small = report.write_report(
    tmp_path, testing.result(), [], {'x': comparison(1, 1, 256)}, 'a: 1', {}, {}
  )
  assert path.stat().st_size < 1.2 * small.stat().st_size


def test_prompts_and_pictures_must_agree(tmp_path):
  bad = comparison()._replace(prompts=['one'])
  with pytest.raises(ValueError, match='1 prompts'):
    report.write_report(tmp_path, testing.result(), [], {'x': bad}, {}, {}, {})


def test_read_history_takes_file_or_workdir(tmp_path):
  with metrics.Writer(tmp_path, tensorboard=False, primary=True) as w:
    w.write_scalars(1, {'a': np.nan})
  for path in (tmp_path, str(tmp_path / 'metrics.jsonl')):
    (line,) = report.read_history(path)
    assert line['step'] == 1
    steps, values = report.series([line], 'a')
    assert steps == [1] and np.isnan(values[0])
