"""Between judge and learn: the rows that there is most to learn from.

Rows of weight 0, of groups without spread or between the best and the worst,
cost as much of an update as any other. With `update_rows` the update takes that
many, those of a weight first, and of these the largest products of weight and
advantage; a mean is over those it takes. With `update_members` it takes that
many of every group: of a best and a worst row among eight, which is all that
pairs are made of, the two.
"""

import jax
import jax.numpy as jnp

from gen_rl.step.recipe import Recipe
from gen_rl.types import Experience, Metrics, RowKeys


def choose(
  recipe: Recipe, exp: Experience, keys: RowKeys
) -> tuple[Experience, RowKeys, Metrics]:
  """(the rows an update takes, their keys, the share of others with a weight).

  Rows stay in their order, and groups whole where objectives compare rows,
  unless there are `update_members`.
  """
  if not recipe.update_rows and not recipe.update_members:
    return exp, keys, {}
  said = exp.weight > 0
  size = jnp.where(said, exp.weight * jnp.abs(exp.adv).max(-1), -1.0)
  if recipe.update_members:
    size = size.reshape(-1, recipe.group_size)
    _, members = jax.lax.top_k(size, recipe.update_members)
    first = jnp.arange(len(size)) * recipe.group_size
    places = first[:, None] + jnp.sort(members, axis=1)
  else:
    unit = recipe.unit
    of_unit = size.reshape(-1, unit).max(1)
    _, units = jax.lax.top_k(of_unit, recipe.update_rows // unit)
    places = jnp.sort(units)[:, None] * unit + jnp.arange(unit)
  places = places.reshape(-1)
  taken, keys = jax.tree.map(lambda x: x[places] if x.ndim else x, (exp, keys))
  left = said.sum() - said[places].sum()
  share = left / jnp.maximum(said.sum(), 1)
  return *recipe.layout.rows((taken, keys)), {'update/left_out': share}
