"""Floating-point operations of a traced program, loops and all.

Products and convolutions are counted, 2 operations per multiplication and
addition; nothing else comes near them on a matrix unit. The body of a scan
counts as often as it runs, of a conditional the costlier branch: what a program
finds out that it need not compute counts. What is computed in vain is taken out
first, as the compiler does; what the backward pass computes anew counts.
"""

from collections.abc import Mapping, Sequence
import math
import re
from typing import Any, NamedTuple

from jax.extend import core
from jax.interpreters import partial_eval


class Count(NamedTuple):
  """Operations, and loops of unknown length, whose bodies count once."""

  scopes: Mapping[str, float]  # {name of a scope, or '': operations}
  open_loops: int

  @property
  def flops(self) -> float:
    """Of all scopes."""
    return sum(self.scopes.values())

  def __add__(self, other: Any) -> 'Count':
    names = {**self.scopes, **other.scopes}
    return Count(
      {k: self.scopes.get(k, 0.0) + other.scopes.get(k, 0.0) for k in names},
      self.open_loops + other.open_loops,
    )

  def times(self, n: float) -> 'Count':
    """Of a body that runs n times."""
    return Count({k: n * x for k, x in self.scopes.items()}, self.open_loops)


def count(jaxpr: core.ClosedJaxpr, scopes: Sequence[str] = ()) -> Count:
  """Operations of `jax.make_jaxpr(f)(...)`, or of `jax.jit(f).trace(...)`.

  Args:
    jaxpr: of a program.
    scopes: names of `jax.named_scope`s that are told apart; of those inside of
      each other the outer one counts. What is in none is ''.
  """
  live, _ = partial_eval.dce_jaxpr(
    jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars)
  )
  return _count(live, frozenset(scopes), '')


def _count(jaxpr: Any, scopes: frozenset[str], scope: str) -> Count:
  total = Count({}, 0)
  for eqn in jaxpr.eqns:
    name, params = eqn.primitive.name, eqn.params
    here = scope or _scope(eqn, scopes)
    inner = [_count(j, scopes, here) for j in _jaxprs(params)]
    if name == 'dot_general':
      total += Count({here: _dot(eqn)}, 0)
    elif name == 'conv_general_dilated':
      total += Count({here: _convolution(eqn)}, 0)
    elif name in _FUSED:
      total += Count({here: _attention(eqn, _FUSED[name])}, 0)
    elif name == 'cond':
      total += max(inner, key=lambda c: c.flops)
    elif name in ('pallas_call', 'shard_map'):
      # A program for every place of its grid, or for every device.
      times = params['mesh'].size if name == 'shard_map' else _places(params)
      for body in inner:
        total += body.times(times)
    elif name == 'scan':
      total += inner[0].times(params['length'])
    else:
      for body in inner:
        total += body
      if name == 'while' and any(body.flops for body in inner):
        total += Count({}, 1)
  return total


def _scope(eqn: Any, scopes: frozenset[str]) -> str:
  """The outermost of the scopes an equation was traced in; '': none."""
  if not scopes:
    return ''
  names = re.split(r'[/()]', str(eqn.source_info.name_stack))
  return next((name for name in names if name in scopes), '')


def _places(params: dict[str, Any]) -> int:
  """Of the grid of a kernel, those that hold no number known here as one."""
  grid = params['grid_mapping'].grid
  return math.prod(n for n in grid if isinstance(n, int))


def _jaxprs(params: dict[str, Any]) -> list[Any]:
  """Of the functions an equation calls, open ones."""
  found = []
  for value in params.values():
    for x in value if isinstance(value, tuple | list) else (value,):
      x = getattr(x, 'jaxpr', x)
      if hasattr(x, 'eqns'):
        found.append(x)
  return found


# {cuDNN's attention: products of i x j x c that it does}
_FUSED = {
  'dot_product_attention_fwd': 2,
  'dot_product_attention_bwd': 5,
}


def _attention(eqn: Any, products: int) -> float:
  """Of queries [b i n c] and keys [b j m c]."""
  b, i, n, c = eqn.invars[0].aval.shape
  return 2.0 * products * b * n * i * eqn.invars[1].aval.shape[1] * c


def _dot(eqn: Any) -> float:
  (contract, _), _ = eqn.params['dimension_numbers']
  shape = eqn.invars[0].aval.shape
  return (
    2.0
    * math.prod(eqn.outvars[0].aval.shape)
    * math.prod(shape[i] for i in contract)
  )


def _convolution(eqn: Any) -> float:
  numbers = eqn.params['dimension_numbers']
  kernel = eqn.invars[1].aval.shape  # inputs per group already
  out = math.prod(eqn.outvars[0].aval.shape)
  inputs = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
  return 2.0 * out * inputs / eqn.params['batch_group_count']
