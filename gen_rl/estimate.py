"""What a train step needs and moves, from its shapes and compiled programs.

No weights are made and nothing runs. The step time is that of a roofline, the
longest of three:

  (1) operations / peak, bytes through memory / bandwidth, bytes sent / network
"""

from collections import Counter
import dataclasses
import functools
import math
import re
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from gen_rl import assemble, embed, evals, initial, pace, train_state
from gen_rl.data import embeddings, feeds, text_networks
from gen_rl.rewards import combine
from gen_rl.types import RewardOut
from gen_rl.utils import chips, flops, hlo, tree

PARTS = ('parameters', 'optimizer', 'copies', 'frozen', 'other state')


@dataclasses.dataclass
class Plan:
  """Of one layout. Bytes, operations and seconds are those of a chip and step.

  Attributes:
    changes: {field: value} of the config that was planned.
    mesh: {axis: chips}.
    chip: name.
    chips: how many.
    parameters: of the policy, all, trained.
    rows: samples of a step.
    microbatches: of an optimizer step.
    state: {part: bytes} of the train state, and of text encoders that are
      beside it (`embed`).
    temporary: bytes besides it, activations above all; None: did not fit.
    program: bytes of code.
    needed: bytes in all.
    evaluation: bytes an evaluation needs beside the train state; None: not
      planned, or the step does not fit.
    capacity: bytes there are; None: unknown.
    fits: None: unknown.
    error: the compiler's words where it refused.
    operations: of products and convolutions.
    rollout_operations: share of them in sampling and rewards.
    open_loops: loops of unknown length, whose bodies count once.
    network: {collective: bytes sent}.
    memory: bytes read and written.
    read: whether the last two, and the next, are known.
    kernels: {kernel that XLA did not write: calls}.
    seconds: {'compute', 'memory', 'network'}, those known.
    compile_seconds: the compiler took.
  """

  changes: dict[str, Any]
  mesh: dict[str, int]
  chip: str
  chips: int
  parameters: tuple[int, int]
  rows: int
  microbatches: int
  state: dict[str, float]
  temporary: float | None
  program: float
  needed: float | None
  evaluation: float | None
  capacity: float | None
  fits: bool | None
  error: str
  operations: float
  rollout_operations: float
  open_loops: int
  network: dict[str, float]
  memory: float
  read: bool
  kernels: dict[str, int]
  seconds: dict[str, float]
  compile_seconds: float

  @property
  def bound(self) -> str | None:
    """What the step waits for."""
    return max(self.seconds, key=self.seconds.get) if self.seconds else None

  @property
  def step_seconds(self) -> float | None:
    """Equation (1)."""
    return max(self.seconds.values()) if self.seconds else None


def abstract(
  config: ml_collections.ConfigDict, devices: list[Any]
) -> tuple[Any, ...]:
  """(Setup, Layout, Step, state, batch, key), the last three only shapes.

  Raises:
    ConfigError: what the config asks for cannot be built on these devices.
  """
  built = assemble.setup(config)
  layout = assemble.make_layout(config, built, devices)
  step, tx, advantage = assemble.make_step(config, built, layout)
  shapes = initial.shapes(config, built.policy)
  state = jax.eval_shape(
    lambda p: initial.state(config, built, p, tx, advantage), shapes
  )

  def on(x, sharding):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  state = jax.tree.map(on, state, layout.state(state))
  # Features have shapes without the networks that make them, and pictures
  # that of one.
  blank = built.embed and embeddings.blank(built.embed)
  none = np.arange(0)
  batch, _ = next(feeds.training(config, built._replace(embed=blank), none))
  key = on(jax.eval_shape(lambda: jax.random.key(0)), layout.everywhere)
  return built, layout, step, state, layout.shapes(batch), key


def state_bytes(state: Any) -> dict[str, float]:
  """{part: bytes on a device} of a TrainState of shapes with shardings.

  What is offloaded to the hosts takes none.
  """
  out = dict.fromkeys(PARTS, 0.0)
  for name, x in tree.named(state).items():
    if x.sharding and x.sharding.memory_kind == 'pinned_host':
      continue
    shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
    size = math.prod(shape) * (
      4 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
      else x.dtype.itemsize
    )  # fmt: skip
    first = name.split('/')[0]
    part = dict(
      params='parameters', opt_state='optimizer', refs='copies', frozen='frozen'
    ).get(first, 'other state')
    out[part] += size
  return out


def encoder_bytes(
  config: ml_collections.ConfigDict, built: Any, devices: list[Any]
) -> dict[str, float]:
  """{'text encoders': bytes on a device}, if they stay beside the training.

  Args:
    config: see configs/base.py.
    built: an `assemble.Setup`: its source and embed.
    devices: of the run.
  """
  if not embed.resident(config, built):
    return {}
  held = text_networks.device_bytes(built.embed.networks(), devices)
  return {'text encoders': held}


def plan(
  config: ml_collections.ConfigDict,
  devices: list[Any],
  chip: chips.Chip,
  changes: dict[str, Any] | None = None,
  evaluation: bool = True,
) -> Plan:
  """Compiles the step of a config for these devices, and its evaluation.

  Args:
    config: see configs/base.py; not changed.
    devices: of `chips.devices`.
    chip: what they are.
    changes: {'mesh.fsdp': 4, ...} on top of the config.
    evaluation: False leaves it out, to save the time.

  Raises:
    ConfigError: what the config asks for cannot be built on these devices.
  """
  config = _changed(config, changes or {})
  built, layout, step, state, batch, key = abstract(config, devices)
  beside = encoder_bytes(config, built, devices)
  parts = state_bytes(state) | beside
  count = [
    sum(math.prod(x.shape) for x in jax.tree.leaves(p))
    for p in ((state.params, state.frozen['policy']), state.params)
  ]
  with layout.scope():
    traced = traced_step(built, step, state, batch, key)
    counted = [flops.count(p.jaxpr, pace.STAGES) for p in traced]
    start = time.time()
    compiled, error = _compiled(traced, layout)
  operations = sum(c.flops for c in counted) / len(devices)
  stages = 'rollout', 'decode', 'rewards'
  sampled = sum(c.scopes.get(k, 0.0) for c in counted for k in stages)
  moved = [] if error else _traffic(compiled)
  network = {
    kind: sum(m.network.get(kind, 0.0) for m in moved) for kind in hlo.KINDS
  }
  memory = sum(m.memory for m in moved)
  temporary, program, needed, capacity = None, 0.0, None, chip.hbm
  if error:
    needed, capacity = _used(error, capacity, sum(beside.values()))
  else:
    sizes = [c.memory_analysis() for c in compiled]
    largest = max(sizes, key=_peak)
    program = largest.generated_code_size_in_bytes
    needed = _peak(largest) + sum(beside.values())
    temporary = needed - program - sum(parts.values())
  fits = None if capacity is None or needed is None else needed <= capacity
  seconds = {}
  for name, amount, rate in (
    ('compute', operations, chip.flops),
    ('memory', memory, chip.bandwidth),
    ('network', sum(network.values()), chip.network),
  ):
    if rate and not error and (moved or name == 'compute'):
      seconds[name] = amount / rate
  planned = Plan(
    changes=dict(changes or {}),
    mesh=dict(layout.mesh.shape),
    chip=chip.name,
    chips=len(devices),
    parameters=tuple(count),
    rows=config.data.prompts_per_step * config.data.group_size,
    microbatches=config.microbatches,
    state=parts,
    temporary=temporary,
    program=program,
    needed=needed,
    evaluation=None,
    capacity=capacity,
    fits=False if error else fits,
    error=error.splitlines()[0] if error else '',
    operations=operations,
    rollout_operations=sampled / len(devices),
    open_loops=sum(c.open_loops for c in counted)
    + sum(m.open_loops for m in moved),
    network=network,
    memory=memory,
    read=bool(moved),
    kernels=dict(sum((Counter(m.kernels) for m in moved), Counter())),
    seconds=seconds,
    compile_seconds=time.time() - start,
  )
  if not evaluation:
    return planned
  return _with_evaluation(planned, config, built, layout, state)


def with_evaluation(
  planned: Plan, config: ml_collections.ConfigDict, devices: list[Any]
) -> Plan:
  """Adds what an evaluation needs to the plan of a step that may fit.

  Args:
    planned: without it.
    config: that was planned, before the changes.
    devices: that were planned for.
  """
  config = _changed(config, planned.changes)
  built, layout, _, state, *_ = abstract(config, devices)
  return _with_evaluation(planned, config, built, layout, state)


def _changed(
  config: ml_collections.ConfigDict, changes: dict[str, Any]
) -> ml_collections.ConfigDict:
  config = config.copy_and_resolve_references()
  with config.unlocked():  # keywords that only a signature has
    for field, value in changes.items():
      *parts, last = field.split('.')
      functools.reduce(getattr, parts, config)[last] = value
  return config


def _with_evaluation(planned, config, built, layout, state) -> Plan:
  if planned.fits is False or planned.error:
    return planned
  start = time.time()
  beside, error = _evaluation(config, built, layout, state)
  needed, capacity = sum(planned.state.values()) + beside, planned.capacity
  if error:
    held = planned.state.get('text encoders', 0.0)
    needed, capacity = _used(error, capacity, held)
  unknown = needed is None or capacity is None
  return dataclasses.replace(
    planned,
    evaluation=needed,
    capacity=capacity,
    fits=False if error else None if unknown else needed <= capacity,
    error=f'in evaluation: {error.splitlines()[0]}' if error else '',
    compile_seconds=planned.compile_seconds + time.time() - start,
  )


def _compiled(programs: list[Any], layout: Any) -> tuple[list[Any], str]:
  """(compiled programs, why the compiler refused one for want of memory)."""
  compiled = []
  try:
    for p in programs:
      lowered = p.lower(lowering_platforms=(layout.platform,))
      compiled.append(lowered.compile())
  except jax.errors.JaxRuntimeError as refused:
    error = str(refused)
    if 'RESOURCE_EXHAUSTED' not in error and 'memory' not in error:
      raise
    return compiled, error
  return compiled, ''


def _evaluation(config, built, layout, state) -> tuple[float, str]:
  """(bytes of an evaluation beside the train state, why it was refused)."""
  blank = built.embed and embeddings.blank(built.embed)
  built = built._replace(embed=blank)
  made = {
    label: assemble.make_evaluator(c, built, layout)
    for label, c in evals.configs(config).items()
  }
  _, batch = made[evals.MAIN]
  kl = assemble.make_kl_from_base(config, built, batch, layout)
  params = train_state.full_params(state, 'ema' if config.ema else 'params')
  params = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    params,
    layout.params(params),
  )
  with layout.scope():  # not before: nothing may run on chips of a topology
    programs = [evaluate.trace(params) for evaluate, _ in made.values()]
    programs += [kl.trace(params, params)] if kl else []
    compiled, error = _compiled(programs, layout)
  held = sum(state_bytes(dict(params=params)).values())  # a part of the state
  sizes = [_peak(c.memory_analysis()) - held for c in compiled]
  return max(sizes, default=0.0), error


def traced_step(built, step, state, batch, key) -> list[Any]:
  """What a step runs on the devices, traced."""
  _, host = combine.split({**(built.rewards or {}), **built.monitors})
  if not host:
    return [step.train_step.trace(state, batch, key)]
  traj, inputs, outs = jax.eval_shape(step.sample, state, batch, key)
  b = traj.group.shape[0]
  score = RewardOut(
    jax.ShapeDtypeStruct((b,), np.float32), {},
    jax.ShapeDtypeStruct((b,), np.bool_),
  )  # fmt: skip
  outs = outs | dict.fromkeys(host, score)
  learn = step.learn.trace(state, traj, inputs, outs, key)
  return [step.sample.trace(state, batch, key), learn]


def _traffic(compiled: list[Any]) -> list[hlo.Traffic]:
  """Of compiled programs; [] where this jaxlib cannot read what libtpu wrote.

  A libtpu that is newer than jax asks for may write what jaxlib does not know:
  0.0.52 with jaxlib 0.10.2, asynchronous operations in programs for v5p.
  """
  try:
    return [hlo.traffic(c.as_text()) for c in compiled]
  except jax.errors.JaxRuntimeError as error:
    if 'RET_CHECK failure' not in str(error):
      raise
    return []


def _peak(sizes: Any) -> float:
  """Bytes a program needs, of its memory_analysis()."""
  return (
    sizes.argument_size_in_bytes
    + sizes.output_size_in_bytes
    - sizes.alias_size_in_bytes
    + sizes.temp_size_in_bytes
    + sizes.generated_code_size_in_bytes
  )


def _used(error: str, capacity: float | None, beside: float) -> tuple[Any, Any]:
  """(bytes needed, bytes there are) of a refusal by a compiler for TPUs.

  Args:
    error: its words.
    capacity: what there is, where these do not say it.
    beside: bytes that no program of the compiler has.
  """
  size = r'\(?([\d.]+)([KMG])\)?'
  found = re.search(
    rf'{size} exceeds available HBM {size}|Used {size} of {size}', error
  )
  if not found:
    return None, capacity
  found = [g for g in found.groups() if g]
  unit = dict(K=2**10, M=2**20, G=2**30)
  return (
    float(found[0]) * unit[found[1]] + beside,
    float(found[2]) * unit[found[3]],
  )
