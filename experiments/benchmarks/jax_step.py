"""Ours: a step of a released config, or tokens said, to be timed.

Configs are configs/sd3_flow_grpo.py with variants and configs/flux_flow_grpo.py
as they stand: networks, grids, windows, adapters, objectives. What is changed:
one prompt a rollout and one update, a reward that costs nothing, and what the
machine has memory for (`RUNGS`). Weights and features of prompts are drawn.
"""

from collections.abc import Callable, Iterator, Mapping
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs import diffusion_nft, flux_flow_grpo, sd3_flow_grpo
from experiments.benchmarks import decode
from gen_rl import assemble, estimate, initial
from gen_rl.data import feeds
from gen_rl.models import lm
from gen_rl.policies import tokens
from gen_rl.utils import chips, flops

VARIANTS = dict(
  sd3='', sd3_fast='fast', sd3_fast_nocfg='fast_nocfg', sd3_nft='', flux=''
)  # fmt: skip
DRAWS = 9  # of NFT: all times of the grid of ten but the last
# What is kept for the backward pass takes 4.6 GiB a latent of SD3.5
# and 17 of FLUX.1 with remat "none", 1.3 and 2.3 with "dots" (shapes of the
# traced network, without the scores that fused attention does not keep). So
# these fit 140 GB with "none", 18, 16, 18, 18 and 3 latents at a time, and 80
# GB with "dots".
MICROBATCHES = dict(sd3=24, sd3_fast=6, sd3_fast_nocfg=3, sd3_nft=12, flux=24)
RUNGS = 'none', 'dots', 'full'
DECODES = dict(
  full=dict(groups=8, members=8, prompt=1000, said=256),
  tiny=dict(groups=2, members=4, prompt=32, said=16),
)
TINY_LM = dict(
  vocab=1024, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, mlp=192,
  theta=1e6, qk_norm=False, bias=True, scan=True,
)  # fmt: skip


class Measured(NamedTuple):
  """What a step is, before it runs."""

  run: Callable[[], None]  # a step, to its end
  found: dict[str, Any]  # planned, operations, ...


def config(
  task: str, tiny: bool, changes: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """The released config with one prompt and a reward that costs nothing."""
  module = flux_flow_grpo if task == 'flux' else sd3_flow_grpo
  variant = VARIANTS[task]
  group = module.get_config(variant).data.group_size
  if tiny:
    variant = ','.join(filter(None, (variant, 'tiny')))
  c = module.get_config(variant)
  c.data.update(prompts_per_step=1, group_size=group)
  c.data.reader.update(tokenizer=dict(name=''), texts={})
  c.rewards = dict(chroma=dict(name='saturation', weight=1.0))
  c.eval.gold = dict(chroma=dict(name='saturation'))
  c.update(updates=1, rollout_chunks=1)
  c.microbatches = 1 if tiny else MICROBATCHES[task]
  if task == 'sd3_nft':
    _matching(c)
  with c.unlocked():  # keywords that only a signature has
    c.update_from_flattened_dict(dict(changes))
  return c


def _matching(c: ml_collections.ConfigDict) -> None:
  """What DiffusionNFT's config has in place of a policy gradient.

  The rate of the copy and the draws are those of its published code.
  """
  nft = diffusion_nft.get_config()
  c.policy.update(
    deterministic=True, solver=nft.policy.solver, guidance_scale=1.0,
    window=nft.policy.window,
  )  # fmt: skip
  c.data.embed.negative = None
  c.behaviour, c.copies = nft.behaviour, nft.copies
  c.copies.slow.rate = 1e-3
  c.objective = nft.objective
  c.objective.nft.draws = c.objective.kl.draws = min(DRAWS, c.policy.steps - 1)


def _rungs(
  task: str, tiny: bool, changes: Mapping[str, Any]
) -> Iterator[ml_collections.ConfigDict]:
  """Configs that need less and less memory; one, where `changes` say it."""
  name = 'model.net.remat'
  for remat in [changes[name]] if name in changes else RUNGS:
    yield config(task, tiny, {**changes, name: remat})


def image_step(task: str, tiny: bool, changes: Mapping[str, Any]) -> Measured:
  """Of the first of `RUNGS` that fits, by its plan.

  Raises:
    MemoryError: none does.
  """
  devices, chip = chips.devices('local')
  for c in _rungs(task, tiny, changes):
    planned = estimate.plan(c, devices[:1], chip, evaluation=False)
    if planned.fits is not False and not planned.error:
      return _planned_step(c, planned, devices[:1])
  raise MemoryError(f'out of memory, as planned: {planned.error or planned}')


def _planned_step(
  c: ml_collections.ConfigDict, planned: estimate.Plan, devices: list[Any]
) -> Measured:
  """The program that was planned; the cache of programs has it by now."""
  built, layout, step, *shapes = estimate.abstract(c, devices)
  _, tx, advantage = assemble.make_step(c, built, layout)

  def drawn() -> Any:
    params = built.policy.init(jax.random.key(c.seed))
    params = initial.with_adapters(c, params)
    return initial.state(c, built, params, tx, advantage)

  with layout.scope():
    (traced,) = estimate.traced_step(built, step, *shapes)
    program = traced.lower(lowering_platforms=(layout.platform,)).compile()
    # One program, so that no parameter is held twice.
    state = jax.jit(drawn, out_shardings=layout.state(shapes[0]))()
  batch, _ = next(feeds.training(c, built))
  key = jax.random.key(c.seed)
  batch, key = jax.device_put((batch, key), layout.everywhere)
  operations = planned.operations
  if c.model.net.remat != 'none':
    operations = _operations(c, devices)
  count = [0]

  def run() -> None:
    nonlocal state
    state, logged = program(state, batch, jax.random.fold_in(key, count[0]))
    logged = jax.device_get(logged)
    count[0] += 1
    if not logged['optim/grad_norm'] > 0 or logged['optim/skipped']:
      raise FloatingPointError(
        f'the norm of the gradient is {logged["optim/grad_norm"]}'
      )

  return Measured(run, dict(
    planned=planned.needed, bound=planned.step_seconds, operations=operations,
    trained=planned.parameters[1], kernels=planned.kernels,
    geometry=f'{c.microbatches} microbatches, remat {c.model.net.remat}',
    drawn=peak(), makes=c.data.group_size, unit='images',
  ))  # fmt: skip


def _operations(c: ml_collections.ConfigDict, devices: list[Any]) -> float:
  """Of a step in which nothing is computed anew."""
  c = c.copy_and_resolve_references()
  c.model.net.remat = 'none'
  built, layout, step, *arguments = estimate.abstract(c, devices)
  with layout.scope():
    traced = estimate.traced_step(built, step, *arguments)
  return sum(flops.count(p.jaxpr).flops for p in traced)


def decode_step(tiny: bool) -> Measured:
  """Groups of rows that speak."""
  sizes, asked = language(tiny)
  net = lm.lm(**sizes)
  dtype = sizes.get('dtype', 'float32')
  params = jax.jit(
    lambda key: jax.tree.map(lambda x: x.astype(dtype), net.init(key))
  )(jax.random.key(0))
  prompts = decode.prompts(asked['groups'], net.vocab, asked['prompt'])
  rows = decode.rows(prompts, asked['members'])
  policy = tokens.tokens(net, length=asked['said'])

  def say(params: Any, rows: Any) -> jax.Array:
    return policy.rollout(params, rows, jnp.int32(0)).actions

  traced = jax.jit(say).trace(params, rows)
  program = traced.lower().compile()
  needs = program.memory_analysis()
  operations, bound = _decode_costs(net, params, prompts, asked)

  def run() -> None:
    said = np.asarray(program(params, rows))
    if said.shape != (asked['groups'] * asked['members'], asked['said']):
      raise ValueError(f'said {said.shape}')

  return Measured(run, dict(
    planned=needs.argument_size_in_bytes + needs.output_size_in_bytes
    - needs.alias_size_in_bytes + needs.temp_size_in_bytes
    + needs.generated_code_size_in_bytes,
    bound=bound, operations=operations, drawn=peak(), unit='tokens',
    makes=asked['groups'] * asked['members'] * asked['said'],
  ))  # fmt: skip


def _decode_costs(
  net: Any, params: Any, prompts: np.ndarray, asked: Mapping[str, int]
) -> tuple[float, float | None]:
  """(operations of all that is said, seconds it cannot beat; None: unknown).

  A loop's end is not known to who counts, so this is of the prompts, read once
  a group, and of the steps, which read all parameters and caches from memory.
  """
  read = lambda params, cond: net.prefill(params, cond, asked['said'])
  arguments = params, dict(tokens=jnp.asarray(prompts, jnp.int32))
  cache, _ = jax.eval_shape(read, *arguments)
  cache = jax.eval_shape(
    lambda cache: net.repeat(cache, asked['members']), cache
  )
  token = jax.ShapeDtypeStruct((asked['groups'] * asked['members'],), jnp.int32)
  first, each = (
    flops.count(jax.make_jaxpr(f)(*x)).flops
    for f, x in ((read, arguments), (net.step, (params, cache, token)))
  )
  said = asked['said'] - 1  # the first one follows from the prompt
  operations = first + said * each
  chip = chips.of_kind(jax.local_devices()[0].device_kind)
  if not chip.flops:
    return operations, None
  held = sum(
    x.size * x.dtype.itemsize for x in jax.tree.leaves((params, cache))
  )
  step = max(each / chip.flops, held / chip.bandwidth)
  return operations, first / chip.flops + said * step


def language(tiny: bool) -> tuple[dict[str, Any], dict[str, int]]:
  """(arguments of models.lm.lm, what is said)."""
  if tiny:
    return TINY_LM, DECODES['tiny']
  return decode.LARGE, DECODES['full']


def peak() -> int | None:
  """Bytes the device held at most until now; None: nobody counts them."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get('peak_bytes_in_use')


def parse(fields: str) -> dict[str, Any]:
  """'microbatches=12;model.net.remat="full"' -> {field: value}."""
  pairs = (f.partition('=') for f in filter(None, fields.split(';')))
  return {name: json.loads(value) for name, _, value in pairs}
