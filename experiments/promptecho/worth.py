"""What a judge is worth, and what training by it won: columns of run.py.

With u_pi the oracle's partial credit of picture i of prompt p of a policy, and
v_pj that of the base,

  net wins   mean over p, i, j of sign(u_pi - v_pj)                      (1)

of all pairs of n pictures a prompt: 1 where every picture beats every one of
the base, 0 for the base itself. DenseAlignBench (arXiv 2604.12652) counts it of
one pair a prompt, by another model's verdicts.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float
import ml_collections
import numpy as np

from configs import pretrain_vlm, promptecho_flow_grpo
from experiments.promptecho import judges
from gen_rl import (
  assemble,
  evals,
  inference,
  initial,
  rollout,
  search,
  selection,
)
from gen_rl.data import feeds
from gen_rl.types import Array, Params, Rows

POOL, PART = 12, 14  # pictures of a prompt, prompts at a time
BEST_OF = 8


def net_wins(
  ours: Float[np.ndarray, 'p n'], base: Float[np.ndarray, 'p m']
) -> float:
  """(1), in [-1, 1]; a picture that was not judged (NaN) loses."""
  ours, base = (np.nan_to_num(x, nan=-np.inf) for x in (ours, base))
  u, v = ours[:, :, None], base[:, None]
  return float(np.mean((u > v) * 1.0 - (u < v)))


def of_training(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> dict[str, float]:
  """net_wins and base_net_wins, which is 0; base_short and short, if there.

  Args:
    config: of the run.
    workdir: of it, finished.
  """
  credit = dict(credit=dict(name='shapes_geneval', strict_weight=0.0))
  built = assemble.setup(config)
  run, _ = assemble.make_evaluator(
    evals.changed(config, dict(gold=credit)), built
  )
  loaded = inference.load_params(config, str(workdir), built.policy)
  base = run(initial.params(config, built.policy)).gold
  ours = run(loaded.params).gold
  out = dict(base_net_wins=net_wins(base, base), net_wins=net_wins(ours, base))
  found = json.loads((workdir / 'result.json').read_text('utf-8'))
  if part := (found.get('evals') or {}).get('short'):
    out['base_short'] = part['base']['strict']
    out['short'] = part['trained']['strict']
  return out


def of_judge(weights: pathlib.Path, small: bool, seed: int) -> dict[str, float]:
  """tau of both its scores, and gold of what it chooses of the base's pictures.

  Of held-out dense prompts, POOL pictures each: tau, tau_asked, see
  `judges.agreement`; best1 and best8, the share of right ones among those of
  most likelihood out of one and out of BEST_OF, over all choices of so many.

  Args:
    weights: of the judge.
    small: it is pretrain_vlm.SMALL.
    seed: of the noise.
  """
  config = promptecho_flow_grpo.get_config('dense')
  model = pretrain_vlm.model()
  if small:
    model.update(pretrain_vlm.SMALL)
  reads = dict(weights=str(weights), model=model, weight=1.0)
  config.rewards.echo = reads | dict(name='echo')
  config.rewards.asked = reads | dict(name='checklist', hard=True)
  config.rewards.oracle.weight = 1.0
  built = assemble.setup(config)
  params = initial.params(config, built.policy)
  batch, *_ = feeds.evaluation_and_asked(config, built)
  scores = jax.jit(_scores(built))
  parts = []
  for first in range(0, len(batch['prompt_id']), PART):
    part = jax.tree.map(lambda x, i=first: x[i : i + PART], batch)
    rows = rollout.make_rows(
      part, POOL, jax.random.key(1000 + seed), np.int32(first)
    )
    parts.append(jax.device_get(scores(params, rows)))
  found = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
  found = {k: x.reshape(-1, POOL) for k, x in found.items()}
  curve = selection.bon_curve(found['echo'], found['strict']).mean(0)
  return {
    'tau': judges.agreement(found['echo'], found['oracle'])['tau'],
    'tau_asked': judges.agreement(found['asked'], found['oracle'])['tau'],
    'best1': float(curve[0]),
    f'best{BEST_OF}': float(curve[BEST_OF - 1]),
  }


def _scores(built: assemble.Setup):
  """(parameters of the policy, rows) -> {echo, asked, oracle, strict: [b]}."""

  def scores(params: Params, rows: Rows) -> dict[str, Array]:
    latents = built.sampler(params, rows)
    said: dict[str, Any] = {
      label: search.judge(built.policy, params, reward, reward.params)(
        latents, rows, POOL
      )
      for label, (reward, _) in built.rewards.items()
    }
    out = {
      label: jnp.where(x.valid, x.score, -jnp.inf) for label, x in said.items()
    }
    return out | dict(strict=said['oracle'].parts['strict'])

  return scores
