"""The evaluations of a run: what runs them, and the KL from its base."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import ml_collections
import numpy as np

from gen_rl import assemble, evals, results, sharding
from gen_rl import evaluate as evaluate_lib
from gen_rl.data import feeds
from gen_rl.evals import MAIN
from gen_rl.types import Params
from gen_rl.utils import words

Evaluations = dict[str, evaluate_lib.Evaluation]  # by label, see `evals`


class Evaluators:
  """What runs the evaluations of a config.

  Attributes:
    configs: {label: the config whose `eval` it is}, the main one first.
    trained_on: {label: share of its prompts that training draws, too}; None
      where that is not known.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    built: assemble.Setup,
    layout: sharding.Layout,
    base: Params,
    keep: Callable[[str, Any], Any] = lambda name, function: function,
  ):
    """Traces what will run: mistakes show before anything is written.

    Args:
      config: see configs/base.py.
      built: of the config.
      layout: where arrays live.
      base: what a run begins with, on the host.
      keep: (name, jitted) -> what keeps its program, see `utils.programs`.
    """
    self.configs = evals.configs(config)
    self._layout, self._base = layout, base
    made = {
      label: assemble.make_evaluator(
        c, built, layout, functools.partial(keep, f'eval/{label}')
      )
      for label, c in self.configs.items()
    }
    self._runs = {label: run for label, (run, _) in made.items()}
    shapes = jax.eval_shape(lambda x: x, base)
    with layout.scope():
      for run in self._runs.values():
        run.trace(shapes)
    _, batch = made[MAIN]
    self._kl = assemble.make_kl_from_base(
      config, built, batch, layout, functools.partial(keep, 'kl')
    )
    self.trained_on = {
      label: feeds.trained_on(c, built.source)
      for label, c in self.configs.items()
    }

  def due(self, done: int) -> list[str]:
    """Evaluations that come after `done` updates."""
    return [k for k, c in self.configs.items() if done % c.eval.every == 0]

  def __call__(
    self, params: Params | None = None, labels: Sequence[str] | None = None
  ) -> tuple[Evaluations, float | None]:
    """(evaluations, KL from the base in nats a sample).

    Args:
      params: what to evaluate; None: the base.
      labels: which evaluations; None: all. The KL is there with the main one,
        where it is defined.
    """
    evaluated = self._placed_base() if params is None else params
    labels = self._runs if labels is None else labels
    found = {label: self._runs[label](evaluated) for label in labels}
    if not self._kl or MAIN not in found:
      return found, None
    if params is None:
      return found, 0.0
    return found, self._kl(params, self._placed_base())

  def others(
    self, base: Evaluations, trained: Evaluations
  ) -> dict[str, dict[str, Any]]:
    """What result.json says of those beside the main one, by label."""
    return {
      label: dict(
        base=base[label].summary(),
        trained=trained[label].summary(),
        trained_on=share,
      )
      for label, share in self.trained_on.items()
      if label != MAIN
    }

  def name(self, label: str) -> str:
    """What to call the prompts of an evaluation."""
    return label or results.evaluated_on(self.trained_on[MAIN])

  def says(self, label: str, found: evaluate_lib.Evaluation) -> str:
    """The number of an evaluation, for the terminal."""
    name, value = results.gold(found.summary()), found.strict
    if name is None:
      name, value = 'proxy', found.proxy
    return f'{self.name(label)} {name} {words.fixed(value)}'

  def grid(
    self, label: str, found: evaluate_lib.Evaluation
  ) -> dict[str, np.ndarray]:
    """{name: picture} of its samples, of as many as the config says."""
    name = 'samples' + (f'_{label}' if label else '')
    return {name: found.grid(self.configs[label].eval.shown)}

  def _placed_base(self) -> Params:
    """On all devices; where there is one, programs put it there."""
    if self._layout.mesh.size == 1:
      return self._base
    return sharding.put(self._base, self._layout.params(self._base))
