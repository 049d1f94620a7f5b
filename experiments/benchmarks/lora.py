"""Our adapters against qwix's, on the transformer: time, memory, what works.

  python experiments/benchmarks/lora.py   # prints and renews README.md

Needs qwix (extra "parity"). Programs are timed in turns, each turn in another
order, so what else the machine does slows all of them alike.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping
import functools
from importlib import metadata
import pathlib
import re
import statistics
import sys
import time
from typing import Any
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np

from experiments import tables
from gen_rl.models import dit
from gen_rl.models.parts import layers, lora
from gen_rl.models.parts.layers import Net
from gen_rl.types import Array, Params
from gen_rl.utils import system, tree

PATTERN, RANK, ALPHA = r'block|text|pooled', 8, 16.0
SIZES = {
  'width 160, 5 layers, batch 32': (dict(width=160, layers=5), 32),
  'width 384, 4 layers, batch 8': (dict(width=384, layers=4), 8),
  'width 160, bfloat16': (dict(width=160, layers=5, dtype='bfloat16'), 32),
}
NAMES = 'none', 'ours', 'qwix'
TURNS, COMPILATIONS = 60, 6
ADAPTERS = 3  # in one call: of the policy, the reference and the old policy
LENGTH = 16
_MEASURES = {
  'run, ms': '.2f', 'trace, s': '.2f', 'compile, s': '.2f',
  'products': '.0f', 'instructions': '.0f',
}  # fmt: skip
KEY = jax.random.key(0)


def by_qwix(
  make: Callable[[], Net], pattern: str, rank: int, alpha: float
) -> Net:
  """A net adapted by qwix instead of by us.

  Args:
    make: builds it around a `dit.DiT`.
    pattern: like that of `lora.add`.
    rank: see `lora.add`.
    alpha: see `lora.add`.

  Returns:
    The net. Its parameters are those of `lora.add` without the scales.
  """
  import qwix  # noqa: PLC0415 - an extra

  # qwix matches whole paths, we search in them.
  provider = qwix.LoraProvider(
    module_path=f'.*(?:{pattern}).*', rank=rank, alpha=alpha
  )
  methods = '__call__', 'encode', 'denoise'
  real = dit.DiT

  def adapted(*args, **kwargs):
    model = real(*args, **kwargs)
    return qwix.apply_lora_to_model(model, provider, methods=methods)

  def without_ours(function):
    """`layers.Dense` finds no adapters; all that qwix adds is left."""

    def call(*args):
      with mock.patch.object(layers.Dense, 'has_variable', lambda *_: False):
        return function(*args)

    return call

  with mock.patch.object(dit, 'DiT', adapted):
    net = make()
  return net._replace(
    init=without_ours(net.init),
    apply=without_ours(net.apply),
    encode=without_ours(net.encode),
  )


def for_qwix(params: Params) -> Params:
  """Adapters as qwix holds them: their scale is a constant of the program."""
  leaves = tree.named(params)
  return tree.nest(
    {n: x for n, x in leaves.items() if not n.endswith('_lora_scale')}
  )


def trained(params: Params, seed: int = 1, size: float = 0.1) -> Params:
  """With normal numbers in every B, in place of its zeros."""
  leaves = tree.named(params)
  for i, name in enumerate(sorted(leaves)):
    if name.endswith('_lora_b'):
      key = jax.random.fold_in(jax.random.key(seed), i)
      leaves[name] = size * jax.random.normal(key, leaves[name].shape)
  return tree.nest(leaves)


def velocity(net: Net, params: Params, x: Array, tokens: Array) -> Array:
  """Of prompts and noise, all at the same time."""
  prompt = net.encode(params, dict(tokens=tokens))
  return net.apply(params, x, jnp.full(len(x), 0.4), prompt)


def loss(net, free, fixed, x, tokens) -> Array:
  """Of parameters in two parts, `free` ones that are trained and others."""
  params = tree.merge(free, fixed) if fixed else free
  return jnp.square(velocity(net, params, x, tokens)).mean()


def together(net, adapters, fixed, x, tokens) -> Array:
  """Stacked adapters [k ...] in one call -> velocities [k b ...]."""
  return jax.vmap(
    lambda a: velocity(net, tree.merge(a, fixed), x, tokens)
  )(adapters)  # fmt: skip


def contestants(options: Mapping[str, Any]) -> dict[str, tuple]:
  """{name: (net, leaves that are trained, the others)}."""
  make = functools.partial(dit.dit, length=LENGTH, **options)
  net = make()
  base = net.init(KEY)
  adapted = trained(lora.add(base, PATTERN, RANK, ALPHA, KEY))
  qwix_net = by_qwix(make, PATTERN, RANK, ALPHA)
  return {
    'none': (net, base, {}),
    'ours': (net, *tree.split(adapted, lora.TRAINABLE)),
    'qwix': (qwix_net, *tree.split(for_qwix(adapted), lora.TRAINABLE)),
  }


def inputs(net: Net, batch: int) -> tuple[Array, Array]:
  tokens = np.random.default_rng(0).integers(1, 60, (batch, LENGTH))
  x = jax.random.normal(KEY, (batch, *net.shape))
  return x, jnp.asarray(tokens, jnp.int32)


def programs(options: Mapping[str, Any], batch: int) -> dict[str, dict]:
  """{program: {contestant: (function, arguments)}}."""
  out = {'forward': {}, 'forward and backward': {}}
  out[f'{ADAPTERS} adapters, one call'] = {}
  forward, backward, several = out.values()
  for name, (net, free, fixed) in contestants(options).items():
    x, tokens = inputs(net, batch)
    whole = tree.merge(free, fixed) if fixed else free
    forward[name] = functools.partial(velocity, net), (whole, x, tokens)
    gradient = jax.value_and_grad(functools.partial(loss, net))
    backward[name] = gradient, (free, fixed, x, tokens)
    if fixed:
      stack = [trained(free, seed) for seed in range(ADAPTERS)]
      stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *stack)
      call = functools.partial(together, net)
      several[name] = call, (stack, fixed, x, tokens)
  return out


def rotated(names: Iterable[str], turns: int) -> Iterator[str]:
  """All names once a turn, each turn beginning with another one."""
  names = list(names)
  for turn in range(turns):
    first = turn % len(names)
    yield from names[first:] + names[:first]


def in_turns(
  functions: Mapping[str, Callable[[], Any]], turns: int
) -> dict[str, list[float]]:
  """{name: seconds of every turn}, of the second of two calls in a row."""
  seconds = {name: [] for name in functions}
  for name in rotated(functions, turns):
    jax.block_until_ready(functions[name]())
    start = time.perf_counter()
    jax.block_until_ready(functions[name]())
    seconds[name].append(time.perf_counter() - start)
  return seconds


def compiled(each: Mapping[str, tuple], times: int) -> dict[str, dict]:
  """{contestant: the program; of every time it is made: seconds and size}."""
  found = {name: collections.defaultdict(list) for name in each}
  for name in rotated(each, times):
    of, (function, arguments) = found[name], each[name]
    jax.clear_caches()
    start = time.perf_counter()
    lowered = jax.jit(lambda *a, f=function: f(*a)).lower(*arguments)
    middle = time.perf_counter()
    of['program'] = lowered.compile()
    of['compile, s'].append(time.perf_counter() - middle)
    of['trace, s'].append(middle - start)
    text = of['program'].as_text()
    of['products'].append(len(re.findall(r' = \S+ dot\(', text)))
    instructions = re.findall(r'^ +(?:ROOT )?%?\S+ = ', text, re.M)
    of['instructions'].append(len(instructions))
  return found


def kept(each: tuple) -> float:
  """MB the backward pass needs of the forward pass, parameters included."""
  net, free, fixed = each
  x, tokens = inputs(net, 32)

  def residuals(free):
    return jax.vjp(lambda p: loss(net, p, fixed, x, tokens), free)[1]

  leaves = jax.tree.leaves(jax.eval_shape(residuals, free))
  return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / 1e6


def _row(each: Mapping[str, tuple], turns: int, times: int) -> list[str]:
  """Measures of one program, and the ratio of run times."""
  made = compiled(each, times)
  calls = {
    name: functools.partial(made[name]['program'], *each[name][1])
    for name in each
  }
  for name, seconds in in_turns(calls, turns).items():
    made[name]['run, ms'] = [1e3 * s for s in seconds]
  cells = [
    ' / '.join(
      format(statistics.median(made[name][what]), form)
      if name in each else '–'
      for name in NAMES
    )
    for what, form in _MEASURES.items()
  ]  # fmt: skip
  ratios = [
    theirs / ours
    for theirs, ours in zip(made['qwix']['run, ms'], made['ours']['run, ms'])
  ]
  low, middle, high = statistics.quantiles(ratios, n=4)
  return [f'{middle:.2f} ({low:.2f} to {high:.2f})', *cells]


def speed(turns: int = TURNS, times: int = COMPILATIONS) -> str:
  """The table of times and sizes."""
  rows = []
  for size, (options, batch) in SIZES.items():
    for program, each in programs(options, batch).items():
      rows.append((f'{size}: {program}', *_row(each, turns, times)))
  heads = f'{" / ".join(NAMES)}:', 'qwix / ours, run', *_MEASURES
  return tables.markdown(heads, rows)


def _outcome(function: Callable[[], Any]) -> str:
  """What it says, or the kind of error it ends with."""
  try:
    return str(function())
  except Exception as error:  # noqa: BLE001 - the kind is what is asked for
    return f'fails: {type(error).__name__}'


def _half(net: Net, params: Params) -> str:
  """How many products of a program have a bfloat16 result."""
  call = jax.jit(functools.partial(velocity, net))
  text = call.lower(params, *inputs(net, 2)).as_text()
  results = re.findall(r'dot_general .*-> tensor<[0-9x]*x(\w+)>', text)
  return f'{results.count("bf16")} of {len(results)}'


def _added(make: Callable[[], Net], pattern: str = PATTERN) -> dict:
  """{who: function that adds adapters and says to how many kernels}."""
  base = make().init(KEY)

  def count(params):
    leaves = tree.named(jax.block_until_ready(params))
    return sum(n.endswith('_lora_a') for n in leaves)

  return dict(
    ours=lambda: count(lora.add(base, pattern, RANK, ALPHA, KEY)),
    qwix=lambda: count(by_qwix(make, pattern, RANK, ALPHA).init(KEY)),
  )


def _moved(make: Callable[[], Net]) -> str:
  """How many leaves of a base qwix draws otherwise than the model does."""
  adapted = tree.named(by_qwix(make, PATTERN, RANK, ALPHA).init(KEY))
  base = {n: x for n, x in adapted.items() if '_lora_' not in n}
  return str(len(tree.differing(tree.nest(base), make().init(KEY))))


def _cast(params: Params) -> Params:
  """Adapters in bfloat16."""
  return tree.nest({
    n: x.astype(jnp.bfloat16) if '_lora_' in n else x
    for n, x in tree.named(params).items()
  })  # fmt: skip


def works() -> str:
  """The table of what is possible."""
  small = functools.partial(dit.dit, width=160, layers=5, length=LENGTH)
  full, half = contestants({}), contestants(dict(dtype='bfloat16'))
  none, base, _ = full['none']
  few = inputs(none, 2)
  add = in_turns(_added(small), 5)
  note = dict(
    ours='from the parameters alone',
    qwix='by a run of the model, which draws a base, too',
  )

  def runs(name: str, change=lambda params: params, **options) -> str:
    net, *parts = contestants(options)[name]
    out = velocity(net, change(tree.merge(*parts)), *few)
    return 'works' if jnp.isfinite(out).all() else 'not finite'

  def products(name: str, change=lambda params: params) -> str:
    net, *parts = half[name]
    return _half(net, change(tree.merge(*parts)))

  def off(name: str) -> str:
    found = [velocity(net, base, *few) for net in (none, full[name][0])]
    return 'the base' if jnp.array_equal(*found) else 'another net'

  def line(what: str, function: Callable[[str], Any]) -> tuple:
    cells = (functools.partial(function, name) for name in ('ours', 'qwix'))
    return what, *map(_outcome, cells)

  scanned = dict(scan=True, dtype='bfloat16')
  lines = [
    line('scanned blocks', lambda n: runs(n, scan=True)),
    line('rematerialised blocks', lambda n: runs(n, remat='dots')),
    line('scanned blocks in bfloat16', lambda n: runs(n, **scanned)),
    line('the same, adapters cast before', lambda n: runs(n, _cast, **scanned)),
    line('bfloat16: products whose result is bfloat16', products),
    line('the same, adapters cast before', lambda n: products(n, _cast)),
    line('kept for a backward pass of 32 rows, MB, float32',
         lambda n: f'{kept(full[n]):.1f}'),
    line('the same, bfloat16', lambda n: f'{kept(half[n]):.1f}'),
    line('the adapted net, given parameters without adapters', off),
    line('adapters found by a pattern that finds nothing',
         lambda n: _added(small, 'blokc')[n]()),
    line('adapters are added',
         lambda n: f'in {statistics.median(add[n]):.2f} s, {note[n]}'),
    ('kernels of the base that are others then', '0', _moved(small)),
    ('the same, scanned', '0', _moved(functools.partial(small, scan=True))),
  ]  # fmt: skip
  return tables.markdown(('', 'ours', 'qwix'), lines)


def where() -> str:
  """Date, machine and versions."""
  env = system.environment()
  versions = ', '.join(
    f'{name} {metadata.version(name)}' for name in ('jax', 'flax', 'qwix')
  )
  return (
    f'{time.strftime("%Y-%m-%d")}, {env["platform"]}, {env["cpus"]} cores '
    f'({env["device"]}), Python {env["python"]}, {versions}.'
  )


if __name__ == '__main__':
  parts = dict(lora=f'{where()}\n\n{speed()}\n\n{works()}')
  print(parts['lora'])
  tables.fill_file(pathlib.Path(__file__).with_name('README.md'), parts)
