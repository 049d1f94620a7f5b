"""Floating-point operations of a traced program, loops and all.

Products and convolutions are counted, 2 operations per multiplication and
addition; nothing else comes near them on a matrix unit. The body of a scan
counts as often as it runs, of a conditional the costlier branch. What is
computed in vain is taken out first, as the compiler does; what the backward
pass computes anew counts.
"""

import math
from typing import Any, NamedTuple

from jax.extend import core
from jax.interpreters import partial_eval


class Count(NamedTuple):
  """Operations, and loops of unknown length, whose bodies count once."""

  flops: float
  open_loops: int

  def __add__(self, other: Any) -> 'Count':
    return Count(self.flops + other.flops, self.open_loops + other.open_loops)


def count(jaxpr: core.ClosedJaxpr) -> Count:
  """Operations of `jax.make_jaxpr(f)(...)`, or of `jax.jit(f).trace(...)`."""
  live, _ = partial_eval.dce_jaxpr(
    jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars)
  )
  return _count(live)


def _count(jaxpr: Any) -> Count:
  total = Count(0.0, 0)
  for eqn in jaxpr.eqns:
    name, params = eqn.primitive.name, eqn.params
    inner = [_count(j) for j in _jaxprs(params)]
    if name == 'dot_general':
      total += Count(_dot(eqn), 0)
    elif name == 'conv_general_dilated':
      total += Count(_convolution(eqn), 0)
    elif name == 'cond':
      total += max(inner)
    elif name == 'scan':
      body = inner[0]
      total += Count(body.flops * params['length'], body.open_loops)
    else:
      for body in inner:
        total += body
      if name == 'while' and any(body.flops for body in inner):
        total += Count(0.0, 1)
  return total


def _jaxprs(params: dict[str, Any]) -> list[Any]:
  """Of the functions an equation calls, open ones."""
  found = []
  for value in params.values():
    for x in value if isinstance(value, tuple | list) else (value,):
      x = getattr(x, 'jaxpr', x)
      if hasattr(x, 'eqns'):
        found.append(x)
  return found


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
