"""What a value may be, by the annotation of its field."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest

from gen_rl import fields
from gen_rl.fields import Count, Decay, Kind, NonNegative, Positive, Share

NAN, INF = float('nan'), float('inf')


@pytest.mark.parametrize(
  'annotation, right, wrong',
  [
    (int, [0, -3, np.int64(2)], [4.0, True, '4', None]),
    (float, [0.5, 3, -1, np.float32(1)], [NAN, INF, -INF, True, '1', None]),
    (bool, [True, False], [1, 0, 'True', None]),
    (str, ['', 'x'], [1, None, b'x']),
    (Count, [1, 9], [0, -1, 1.0, NAN, True]),
    (Positive, [1e-9, 2], [0, 0.0, -1, NAN, INF]),
    (NonNegative, [0, 2.5], [-1e-9, NAN]),
    (Decay, [0, 0.999], [1, 1.5, -0.5]),
    (Share, [1, 0.1], [0, 1.1]),
    (Positive | None, [None, 1.0], [0, 'none']),
    (Literal['a', 'b'], ['a'], ['c', 1, None]),
    (Literal[1], [1], [True, 1.0]),
    (tuple[Count, Count], [(1, 2), [3, 4]], [(1,), (1, 0), (1, 2, 3), 5, '12']),
    (Sequence[str], [(), ('a', 'b')], ['ab', (1,), None]),
    (tuple[Literal['x'], ...], [(), ('x', 'x')], ['x', ('y',)]),
    (Mapping[str, NonNegative], [{}, dict(a=1)], [dict(a=-1), 5, 'a']),
    (Mapping[str, Any] | None, [None, dict(a='x')], ['x', 3]),
    (Callable[[], int], [len], ['len', 3]),
    (str | np.ndarray, ['x', np.zeros(2)], [3]),
    (Any, [object(), None, 3], []),
  ],
)
def test_values_that_fit(annotation, right, wrong):
  for value in right:
    assert fields.misfit(value, annotation) is None, value
  for value in wrong:
    assert fields.misfit(value, annotation), value


@pytest.mark.parametrize(
  'value, annotation, says',
  [
    (-1, Count, 'at least 1'),
    (0.5, Count, 'a whole number at least 1'),
    (NAN, Decay, 'a finite number at least 0 and below 1'),
    ('x', Positive | None, 'a finite number above 0 or None'),
    ('c', Literal['a', 'b'], "'a' or 'b'"),
    ('ema', tuple[Literal['ema'], ...], "a tuple of which each is 'ema'"),
  ],
)
def test_what_it_must_be_is_said(value, annotation, says):
  assert fields.misfit(value, annotation) == says


def test_defaults_and_kinds_of_sections():
  tree = fields.section(
    a=fields.field(1, Count),
    b=fields.section(
      Kind.GEOMETRY, c=2, d=fields.field('x', kind=Kind.BOOKKEEPING)
    ),
    e=fields.part(name='f', w=0.5),
    g=fields.labelled(),
  )
  assert fields.defaults(tree).to_dict() == dict(
    a=1, b=dict(c=2, d='x'), e=dict(name='f', w=0.5), g={}
  )
  assert tree['a'].kind is None
  assert tree['b']['c'].kind == Kind.GEOMETRY
  assert tree['b']['d'].kind == Kind.BOOKKEEPING
  assert fields.kind(fields.Remat) == Kind.GEOMETRY
  assert fields.kind(float) == fields.kind(Count) == Kind.MATHEMATICS
