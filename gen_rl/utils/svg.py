"""Line plots as inline SVG: axes, ticks, labels; no script, no fonts to load.

Colours come from classes (`s0` ... `s7` for curves, `axis`, `tick`, `label`)
that the page's style sheet defines, so one drawing serves light and dark.
"""

from collections.abc import Mapping, Sequence
import html
import math

import numpy as np

WIDTH, HEIGHT = 460, 250  # user units of a plot
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 12, 38  # margins around the axes
MAX_POINTS = 300  # of a curve; more are averaged in bins
COLORS = 8  # classes s0 ... s7


def ticks(low: float, high: float, count: int = 5) -> list[float]:
  """About `count` round numbers (1, 2 or 5 times a power of ten) in a range.

  Args:
    low: start of the range.
    high: its end, above `low`.
    count: how many to aim for.

  Returns:
    Ascending, all within [low, high].
  """
  raw = (high - low) / count
  power = 10.0 ** math.floor(math.log10(raw))
  step = power * min((1, 2, 5, 10), key=lambda m: abs(m * power - raw))
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [round(i * step, 12) for i in range(first, last + 1)]


def number(x: float) -> str:
  """Short for people: 0.25, 1.5k, 3e-05; an en dash for what is no number."""
  if not math.isfinite(x):
    return '–'
  size = abs(x)
  if size and (size < 1e-3 or size >= 1e6):
    mantissa, exponent = f'{x:.1e}'.split('e')
    return f'{mantissa.removesuffix(".0")}e{int(exponent)}'
  if size >= 1e4:
    return f'{x / 1e3:.4g}k'
  return f'{x:.3g}' if size < 1e3 else f'{x:.0f}'


def bounds(values: Sequence[float]) -> tuple[float, float]:
  """Range of the finite values with 5% of air; (0, 1) if there are none."""
  values = [v for v in values if math.isfinite(v)]
  if not values:
    return 0.0, 1.0
  low, high = min(values), max(values)
  air = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
  return (0.0 if low >= 0 and low - air < 0 else low - air), high + air


def smooth(ys: Sequence[float], window: int) -> list[float]:
  """Mean over the `window` values around each, fewer at the ends; NaN apart."""
  ys = np.asarray(ys, float)
  finite = np.isfinite(ys)
  total = np.convolve(np.where(finite, ys, 0.0), np.ones(window), 'same')
  count = np.convolve(finite.astype(float), np.ones(window), 'same')
  return list(np.where(finite, total / np.maximum(count, 1), np.nan))


def thin(xs, ys) -> tuple[list[float], list[float]]:
  """At most MAX_POINTS points: neighbours are averaged."""
  n = -(-len(xs) // MAX_POINTS)
  if n <= 1:
    return list(xs), list(ys)

  def means(v):
    return [float(np.mean(v[i : i + n])) for i in range(0, len(v), n)]

  return means(xs), means(ys)


def coordinates(
  xs: Sequence[float],
  ys: Sequence[float],
  x_range: tuple[float, float],
  y_range: tuple[float, float],
) -> list[tuple[float, float]]:
  """Data to user units: the ranges fill the axes, y upwards; one decimal."""
  x0, x1 = x_range
  y0, y1 = y_range
  x_unit = (WIDTH - LEFT - RIGHT) / (x1 - x0)
  y_unit = (HEIGHT - TOP - BOTTOM) / (y1 - y0)
  return [
    (
      round(LEFT + (x - x0) * x_unit, 1),
      round(HEIGHT - BOTTOM - (y - y0) * y_unit, 1) if math.isfinite(y) else y,
    )
    for x, y in zip(xs, ys, strict=True)
  ]


def curves(
  series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
  x_label: str = 'update',
  title: str = '',
  smoothing: int = 1,
  y_range: tuple[float, float] | None = None,
) -> str:
  """One plot.

  Curve number i has class `s<i>`. Few points get dots; a curve that is
  smoothed is drawn over its faint raw values. NaN leaves a gap.

  Args:
    series: {name: (xs, ys)}, xs ascending.
    x_label: under the axis.
    title: what a screen reader says.
    smoothing: values in the running mean; 1 draws what was measured.
    y_range: fixed range; by default that of the data.

  Returns:
    An <svg> element.
  """
  series = {k: thin(*v) for k, v in series.items()}
  all_x = [x for xs, _ in series.values() for x in xs]
  x_range = (min(all_x), max(all_x)) if all_x else (0.0, 1.0)
  if x_range[0] == x_range[1]:
    x_range = (x_range[0] - 0.5, x_range[1] + 0.5)
  y_range = y_range or bounds([y for _, ys in series.values() for y in ys])
  parts = [_axes(x_range, y_range, x_label)]
  for i, (name, (xs, ys)) in enumerate(series.items()):
    css = f's{i % COLORS}'
    window = smoothing if len(ys) > 2 * smoothing else 1
    if window > 1:
      faint = coordinates(xs, ys, x_range, y_range)
      parts.append(f'<path class="{css} faint" d="{_path(faint)}"/>')
      ys = smooth(ys, window)
    points = coordinates(xs, ys, x_range, y_range)
    parts.append(f'<path class="{css}" d="{_path(points)}"/>')
    if len(points) <= 30:
      parts += [
        f'<circle class="{css}" cx="{x}" cy="{y}" r="3"><title>'
        f'{html.escape(name)}: {number(b)} at {number(a)}</title></circle>'
        for (x, y), a, b in zip(points, xs, ys, strict=True)
        if math.isfinite(y)
      ]
  return (
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
    f'aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
  )


def _path(points):
  """'M x,y L x,y ...', lifted over NaN."""
  out, down = [], False
  for x, y in points:
    if math.isfinite(y):
      out.append(f'{"L" if down else "M"}{x},{y}')
    down = math.isfinite(y)
  return ' '.join(out)


def _axes(x_range, y_range, x_label):
  bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
  parts = []
  ys = ticks(*y_range)
  for value, (_, y) in zip(
    ys, coordinates([x_range[0]] * len(ys), ys, x_range, y_range), strict=True
  ):
    parts.append(
      f'<line class="tick" x1="{LEFT}" x2="{right}" y1="{y}" '
      f'y2="{y}"/><text class="label" x="{LEFT - 7}" '
      f'y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>'
    )
  xs = ticks(*x_range)
  for value, (x, _) in zip(
    xs, coordinates(xs, [y_range[0]] * len(xs), x_range, y_range), strict=True
  ):
    parts.append(
      f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" '
      f'y2="{bottom + 4}"/><text class="label" x="{x}" '
      f'y="{bottom + 17}" text-anchor="middle">{number(value)}'
      '</text>'
    )
  parts.append(
    f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    f'<text class="label" x="{(LEFT + right) / 2}" y="{HEIGHT - 4}" '
    f'text-anchor="middle">{html.escape(x_label)}</text>'
  )
  return ''.join(parts)
