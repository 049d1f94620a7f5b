"""What a compiled program moves: bytes over the network and through memory.

XLA's own cost analysis counts the body of a loop once. Here the text of the
optimised module is read, and a loop counts as often as it turns.

A ring is assumed: of n chips that exchange arrays, each sends, of an operand of
o bytes,

  all-gather (n - 1) o,  reduce-scatter and all-to-all (n - 1) / n o,
  all-reduce 2 (n - 1) / n o,  collective-permute o.                      (1)
"""

from collections import Counter
import functools
import math
import re
from typing import NamedTuple

KINDS = (
  'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
  'collective-permute',
)  # fmt: skip
# Neither reads nor writes memory itself.
_FREE = {
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while',
  'conditional', 'call', 'after-all', 'partition-id', 'replica-id', 'iota',
}  # fmt: skip
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?')
_SIZES = dict(
  pred=1, s4=0.5, u4=0.5, s8=1, u8=1, s16=2, u16=2, f16=2, bf16=2, s32=4,
  u32=4, f32=4, s64=8, u64=8, f64=8, c64=8, c128=16,
)  # fmt: skip


class Traffic(NamedTuple):
  """Of one chip, for one run of the program."""

  network: dict[str, float]  # {kind of collective: bytes sent}
  memory: float  # bytes read and written, fused operations together
  open_loops: int  # whose length was not found: they count once
  kernels: dict[str, int]  # {kernel that XLA did not write: calls}


class _Op(NamedTuple):
  name: str
  kind: str
  type: str
  operands: list[str]
  rest: str  # attributes
  inside: str  # what stands between the parentheses


def traffic(text: str) -> Traffic:
  """Of an optimised module, `compiled.as_text()`."""
  computations, entry = _parse(text)
  program = _Program(computations)
  sent, memory, loops, kernels = program.cost(entry)
  network = Counter()
  for (kind, _), size in sent.items():
    network[kind] += size
  return Traffic(dict(network), memory, loops, dict(kernels))


def _bytes(type_text: str, fast: bool = True) -> float:
  """Of all arrays of a type; without `fast`, of those in main memory."""
  total = 0.0
  for dtype, shape, layout in _ARRAY.findall(type_text):
    if fast or 'S(1)' not in layout:
      size = _SIZES.get(dtype, 1 if dtype.startswith('f8') else 0)
      total += size * math.prod(int(n) for n in shape.split(',') if n)
  return total


def _closing(text: str, start: int) -> int:
  """Where the parenthesis that opens at `start` closes."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == '(') - (text[i] == ')')
    if depth == 0:
      return i
  return len(text) - 1


def _parse(text: str) -> tuple[dict[str, dict[str, _Op]], str]:
  """{computation: {name: op}}, the root last, and the name of the entry."""
  computations, entry, ops = {}, '', {}
  for line in text.splitlines():
    if line and not line[0].isspace() and line.endswith('{'):
      head = line.removeprefix('ENTRY ').split(' ', 1)[0].split('(')[0]
      ops = computations[head.lstrip('%')] = {}
      if line.startswith('ENTRY '):
        entry = head.lstrip('%')
      continue
    name, equals, right = line.strip().partition(' = ')
    if not equals:
      continue
    end = _closing(right, 0) + 1 if right[0] == '(' else right.find(' ')
    kind = re.match(r' *([\w\-]+)\(', right[end:])
    if kind is None:
      continue
    opens = end + kind.end() - 1
    closes = _closing(right, opens)
    inside = right[opens + 1 : closes]
    name = name.removeprefix('ROOT ').lstrip('%')
    ops[name] = _Op(
      name,
      kind[1],
      right[:end],
      re.findall(r'%([\w.\-]+)', inside),
      right[closes + 1 :],
      inside,
    )
  return computations, entry


class _Program:
  """Costs of computations, each found once."""

  def __init__(self, computations: dict[str, dict[str, _Op]]):
    self.computations = computations
    self.cost = functools.cache(self._cost)
    self.partial = functools.cache(self._partial)

  def _cost(self, name: str) -> tuple[Counter, float, int, Counter]:
    """(bytes sent by kind and channel, of memory, open loops, kernels).

    A collective that runs beside products is in several fusions, with one
    channel, and counts once.
    """
    network, memory, loops, kernels = Counter(), 0.0, 0, Counter()
    ops = self.computations[name]
    for op in ops.values():
      kind = op.kind.removesuffix('-start')
      if kind in KINDS:
        channel = re.search(r'channel_id=(\d+)', op.rest)
        key = kind, channel[1] if channel else op.name
        network[key] += _sent(kind, op, ops)
      times = 1
      if op.kind == 'while':
        found = self.turns(op, ops)
        times, loops = found or 1, loops + (found is None)
      inner = [self.cost(c) for c in _called(op)]
      if op.kind == 'conditional' and inner:
        inner = [max(inner, key=lambda c: c[1] + sum(c[0].values()))]
      for sent, moved, more, called in inner:
        for kernel, calls in called.items():
          kernels[kernel] += times * calls
        for key, size in sent.items():
          if op.kind == 'fusion':
            network[key] = max(network[key], size)
          else:
            network[key] += times * size
        if op.kind != 'fusion':
          memory += times * moved
        loops += more
      if kernel := _kernel(op):
        kernels[kernel] += 1
      if op.kind not in _FREE and not op.kind.endswith('-done'):
        memory += self.moved(op, ops)
    return network, memory, loops, kernels

  def turns(self, op: _Op, ops: dict[str, _Op]) -> int | None:
    """How often a loop turns, or None."""
    if known := re.search(r'known_trip_count[^\d]*(\d+)', op.rest):
      return int(known[1])
    condition = re.search(r'condition=%([\w.\-]+)', op.rest)
    body = re.search(r'body=%([\w.\-]+)', op.rest)
    tests = self.computations[condition[1]]
    root = list(tests.values())[-1]
    if root.kind == 'fusion':  # the comparison alone
      inner = list(self.computations[_called(root)[0]].values())
      compare, outer = inner[-1], root
    else:
      compare, outer = root, None
    if compare.kind != 'compare' or 'direction=LT' not in compare.rest:
      return None
    args = [_follow(tests, a, inner if outer else None, outer)
            for a in compare.operands]  # fmt: skip
    if args[0] is None or args[1] is None or args[1].kind != 'constant':
      return None
    limit = int(args[1].inside)
    index = re.search(r'index=(\d+)', args[0].rest)
    if args[0].kind != 'get-tuple-element' or index is None:
      return None
    place = int(index[1])
    start = _constant(ops, ops[op.operands[0]], place) or 0
    step = _step(self.computations[body[1]], place)
    return math.ceil((limit - start) / step)

  def moved(self, op: _Op, ops: dict[str, _Op]) -> float:
    """Bytes an operation reads from main memory and writes to it."""
    slices, updates = {}, None
    if 'custom_call_target="AllocateBuffer"' in op.rest:
      return 0.0
    if op.kind in ('dynamic-slice', 'gather'):
      return 2 * _bytes(op.type, fast=False)
    if op.kind == 'dynamic-update-slice':
      return 2 * _bytes(ops[op.operands[1]].type, fast=False)
    if op.kind == 'fusion' and _called(op):
      slices, updates = self.partial(_called(op)[0])
    read = 0.0
    for i, operand in enumerate(op.operands):
      if operand in ops:
        whole = _bytes(ops[operand].type, fast=False)
        read += min(whole, slices.get(i, whole))
    written = _bytes(op.type, fast=False)
    return read + (written if updates is None else min(written, updates))

  def _partial(self, name: str) -> tuple[dict[int, float], float | None]:
    """What a fusion reads of parameters it slices, and writes in place."""
    ops, slices = self.computations[name], {}
    users = {}
    for op in ops.values():
      for place, operand in enumerate(op.operands):
        users.setdefault(operand, []).append((op, place))

    def read(name: str) -> float | None:
      """By all that use it; None: whole."""
      sizes = []
      for op, place in users.get(name, []):
        size = None
        if op.kind == 'bitcast':
          size = read(op.name)
        elif op.kind in ('dynamic-slice', 'gather') and place == 0:
          size = _bytes(op.type)
        elif op.kind == 'dynamic-update-slice' and place == 0:
          size = 0.0  # written in place
        elif op.kind == 'fusion':
          size = self.partial(_called(op)[0])[0].get(place)
        sizes.append(size)
      return None if not sizes or None in sizes else sum(sizes)

    for op in ops.values():
      if op.kind == 'parameter' and (size := read(op.name)) is not None:
        slices[int(op.inside)] = size
    root = list(ops.values())[-1]
    if root.kind == 'dynamic-update-slice':
      return slices, _bytes(ops[root.operands[1]].type)
    return slices, None


def _kernel(op: _Op) -> str:
  """The name of a kernel that is called; '': none is.

  Its operands and results count once, as those of any operation; what it reads
  again, block by block, does not.
  """
  target = re.search(r'custom_call_target="([^"]*)"', op.rest)
  if target is None:
    return ''
  if target[1] == 'tpu_custom_call':  # of Pallas
    return re.sub(r'(\.\d+)+$', '', op.name)
  return target[1] if 'cudnn' in target[1] else ''


def _called(op: _Op) -> list[str]:
  if op.kind == 'while':  # its condition costs nothing
    return re.findall(r'body=%([\w.\-]+)', op.rest)
  if op.kind == 'conditional':
    listed = re.search(r'branch_computations=\{([^}]*)\}', op.rest)
    text = listed[1] if listed else op.rest
    pattern = r'%([\w.\-]+)' if listed else r'_computation=%([\w.\-]+)'
    return re.findall(pattern, text)
  if op.kind == 'call':
    return re.findall(r'to_apply=%([\w.\-]+)', op.rest)
  return re.findall(r'calls=%([\w.\-]+)', op.rest)


def _follow(tests, name, inner, outer) -> _Op | None:
  """The operation behind an operand of a loop's comparison."""
  if inner is None:
    return tests.get(name)
  op = next((o for o in inner if o.name == name), None)
  if op is not None and op.kind == 'parameter':
    return tests.get(outer.operands[int(op.inside)])
  return op


def _constant(ops: dict[str, _Op], op: _Op, place: int) -> int | None:
  """Element of a tuple, if it is a constant."""
  if op.kind != 'tuple':
    return None
  found = ops.get(op.operands[place])
  while found is not None and found.kind in ('copy', 'bitcast'):
    found = ops.get(found.operands[0])
  if found is None or found.kind != 'constant':
    return None
  return int(found.inside) if found.inside.lstrip('-').isdigit() else None


def _step(body: dict[str, _Op], place: int) -> int:
  """By how much a loop's counter grows each turn."""
  root = list(body.values())[-1]
  if root.kind == 'tuple':
    grown = body.get(root.operands[place])
    if grown is not None and grown.kind == 'add':
      for operand in grown.operands:
        op = body.get(operand)
        if op is not None and op.kind == 'constant' and op.inside.isdigit():
          return max(1, int(op.inside))
  return 1


def _sent(kind: str, op: _Op, ops: dict[str, _Op]) -> float:
  """Equation (1)."""
  operand = sum(_bytes(ops[o].type) for o in op.operands if o in ops)
  if kind == 'collective-permute':
    return operand
  n = _group(op.rest)
  factor = {
    'all-gather': n - 1,
    'all-reduce': 2 * (n - 1) / n,
    'reduce-scatter': (n - 1) / n,
    'all-to-all': (n - 1) / n,
  }[kind]
  return operand * factor


def _group(rest: str) -> int:
  """Chips that take part in a collective together."""
  if mesh := re.search(r'replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}', rest):
    sizes = {k: int(v) for k, v in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
    named = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
    return math.prod(int(n) if n else sizes[axis] for axis, n in named)
  if iota := re.search(r'replica_groups=\[(\d+),(\d+)\]<=', rest):
    return int(iota[2])
  if listed := re.search(r'replica_groups=\{\{([\d,]*)\}', rest):
    return len(listed[1].split(','))
  return 1
