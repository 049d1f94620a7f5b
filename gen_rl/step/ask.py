"""Questions to the policy, and to those that learn beside it, in a step."""

from collections.abc import Callable

import jax

from gen_rl import minibatch
from gen_rl import replay as replay_lib
from gen_rl.step.recipe import Recipe
from gen_rl.train_state import TrainState
from gen_rl.types import Array, Experience, Params, Replay, RewardOut


def replay(
  recipe: Recipe,
  state: TrainState,
  old: Params,
  exp: Experience,
  first: Array | bool = False,
  score: Callable[..., RewardOut] | None = None,
  live: str = 'params',
  params: Params | None = None,
) -> Replay:
  """Who may be asked in a step.

  Args:
    recipe: of the step.
    state: with the copies and the learners.
    old: trained parameters that sampled.
    exp: what they are asked about.
    first: see `replay.make`.
    score: see `replay.make`.
    live: "params" or a learner, whose answers carry gradients.
    params: its trained parameters in place of those of `state`.
  """
  current = state.params
  if live == 'params' and params is not None:
    current = params
  learners = {}
  for label, taught in recipe.learners.items():
    own = state.aux[label]['params']
    if label == live and params is not None:
      own = params
    held = recipe.held(state, label)
    learners[label] = taught.learner.ops, (held, own)
  copies = recipe.copies_of(state, old, current)
  return replay_lib.make(
    recipe.policy, copies, exp, first, score, learners, live
  )


def in_pieces(
  recipe: Recipe, exp: Experience, ask: Callable[[Experience], Array]
) -> Array:
  """Answers [b ...] at the geometry of the updates, without gradients."""
  pieces = recipe.cut(exp, recipe.updates * recipe.microbatches)
  _, found = recipe.fold(lambda _, piece: ((), ask(piece)), (), pieces)
  found = recipe.layout.rows(minibatch.join(found, recipe.unit))
  return jax.lax.stop_gradient(found)
