"""How well cheap draws rank candidates, by the base: ways against calls.

  python experiments/cheap_exploration/ways.py

Every way draws the same candidates (G' = 24 of 42 prompts of training, keys of
three steps) by the shipped base; their rewards are compared with those of exact
draws, all of them and not the chosen ones alone.
Prints the table of the README.
"""

import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from configs import diffusion_nft, flow_grpo
from experiments import tables
from gen_rl import assemble, initial, rollout, setups
from gen_rl.data import feeds
from gen_rl.rewards import combine, evaluate
from gen_rl.rewards import inputs as inputs_lib
from gen_rl.utils import rng

POOL, KEEP = 24, 12
# {name: (config, changes to the policy, type, network calls of a candidate)}
WAYS = {
  'Flow-GRPO, as ever': ('flow_grpo', {}, '', 8),
  'bfloat16': ('flow_grpo', {}, 'bfloat16', 8),
  'two steps after the window': ('flow_grpo', dict(tail=0.4), '', 6),
  'one step after the window': ('flow_grpo', dict(tail=0.01), '', 5),
  'no noise': ('flow_grpo', dict(deterministic=True), '', 8),
  'no noise, 4 steps': (
    'flow_grpo', dict(steps=4, deterministic=True), '', 4,
  ),
  'DiffusionNFT, as ever': ('diffusion_nft', {}, '', 8),
  'NFT: bfloat16': ('diffusion_nft', {}, 'bfloat16', 8),
  'NFT: 6 steps': ('diffusion_nft', dict(steps=6), '', 6),
  'NFT: 4 steps': ('diffusion_nft', dict(steps=4), '', 4),
  'NFT: 3 steps': ('diffusion_nft', dict(steps=3), '', 3),
}  # fmt: skip
CONFIGS = dict(
  flow_grpo=flow_grpo.get_config(), diffusion_nft=diffusion_nft.get_config()
)


def scores(config: Any, changes: dict, dtype: str) -> np.ndarray:
  """Rewards [P G']."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.explore.update(size=POOL, policy=changes, dtype=dtype)
  built = assemble.setup(config)
  policy = setups.pool(config, built).policy or built.policy
  params = initial.params(config, built.policy)
  rewards = built.rewards

  @jax.jit
  def draw(params, batch, step):
    rows = rollout.make_rows(batch, POOL, jax.random.key(0), step)
    traj = policy.rollout(params, rows, step)
    inputs = inputs_lib.of(rows, policy.decode(params, traj.sample), POOL)
    keys = rng.stream_keys(rows.keys, 'reward')
    outs = evaluate.evaluate(
      rewards, inputs_lib.joined(inputs, traj), keys, combine.params(rewards)
    )
    return combine.merge(outs, combine.weights(rewards)).score

  batch, _ = next(feeds.training(config, built))
  found = []
  for step in range(3):  # which have windows of their own
    part = jax.tree.map(lambda x, step=step: x[step::3], dict(batch))
    found.append(np.asarray(draw(params, part, jnp.int32(step))))
  return np.concatenate(found).reshape(-1, POOL)


def ranked(cheap: np.ndarray, exact: np.ndarray) -> tuple[float, float, float]:
  """(Spearman within groups, mean exact reward of cheap best, and worst).

  Over groups whose exact rewards differ; a group of equal cheap ones counts 0.
  """
  ranks = [stats.rankdata(x, axis=1) for x in (cheap, exact)]
  c, e = (r - r.mean(1, keepdims=True) for r in ranks)
  rho = (c * e).sum() / np.sqrt((c * c).sum() * (e * e).sum())
  order = np.argsort(cheap, 1, kind='stable')
  taken = np.take_along_axis(exact, order, 1)
  return rho, taken[:, -KEEP // 2 :].mean(), taken[:, : KEEP // 2].mean()


def main(names: list[str]) -> None:
  """Of these ways; the first of a config is what others are compared with."""
  exact, lines = {}, []
  for name in names or WAYS:
    config, changes, dtype, calls = WAYS[name]
    found = scores(CONFIGS[config], changes, dtype)
    exact.setdefault(config, found)
    rho, best, worst = ranked(found, exact[config])
    lines.append(
      (name, str(calls), f'{rho:.2f}', f'{best:.3f}', f'{worst:.3f}')
    )
    print(*lines[-1], flush=True)
  heads = (
    'way', 'calls', 'rank correlation', 'exact reward of its best 6 of 24',
    'of its worst 6',
  )  # fmt: skip
  print(tables.markdown(heads, lines))


if __name__ == '__main__':
  main(sys.argv[1:])
