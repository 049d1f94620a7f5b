"""Who is measured by `accelerator`: ours, and PyTorch's, in two ways."""

from collections.abc import Callable, Mapping
import time
from typing import Any

# Latents in a call of the network; halved until they fit.
CALLS = {
  'torch tuned': dict(
    sd3=12, flux=6, sd3_fast=12, sd3_fast_nocfg=18, sd3_nft=24
  ),
  'torch published': dict(
    sd3=8, flux=3, sd3_fast=8, sd3_fast_nocfg=9, sd3_nft=12
  ),
}  # fmt: skip
TINY_CALL = 24


def torchs(
  task: str, contestant: str, tiny: bool, emit: Callable[..., bool]
) -> None:
  """Measures PyTorch's."""
  import torch  # noqa: PLC0415 - an extra

  tuned = contestant == 'torch tuned'
  device = 'cuda' if torch.cuda.is_available() else 'cpu'

  def memory() -> int | None:
    return torch.cuda.max_memory_allocated() if device == 'cuda' else None

  if task == 'decode':
    from experiments.benchmarks import jax_step, torch_decode  # noqa: PLC0415

    sizes, asked = jax_step.language(tiny)
    said = torch_decode.Task(sizes, **asked)
    timed = torch_decode.Decode(said, device, tuned).timed
    makes = said.groups * said.members * said.said
    count_steps(timed, memory, emit, dict(makes=makes, unit='tokens'))
    return
  from experiments.benchmarks import torch_step, torch_task  # noqa: PLC0415

  rows = TINY_CALL if tiny else CALLS[contestant][task]
  said = torch_task.of(task, tiny)
  step = torch_step.Step(said, device, tuned, rows)
  known = dict(
    makes=said.rows, unit='images', trained=sum(p.numel() for p in step.trained)
  )
  if device == 'cuda':
    torch.cuda.reset_peak_memory_stats()
  while True:
    known['geometry'] = f'{step.rows} latents a call'
    try:
      count_steps(step.timed, memory, emit, known)
      return
    except torch.cuda.OutOfMemoryError:
      if step.rows == 1:
        raise
    step.rows = -(-step.rows // 2)
    step.use('default')
    step.optimizer.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def ours(task: str, tiny: bool, fields: str, emit: Callable[..., bool]) -> None:
  """Measures ours."""
  from experiments.benchmarks import jax_step  # noqa: PLC0415 - an extra

  start = time.perf_counter()
  if task == 'decode':
    step = jax_step.decode_step(tiny)
  else:
    step = jax_step.image_step(task, tiny, jax_step.parse(fields))
  made = time.perf_counter() - start

  def timed() -> dict[str, float]:
    start = time.perf_counter()
    step.run()
    return dict(whole=time.perf_counter() - start)

  count_steps(timed, jax_step.peak, emit, step.found, made)


def count_steps(
  timed: Callable[[], dict[str, float]],
  memory: Callable[[], int | None],
  emit: Callable[..., bool],
  known: Mapping[str, Any],
  made: float = 0.0,
) -> None:
  """Runs steps and says after each what is known by then.

  Args:
    timed: runs one; seconds, by part.
    memory: bytes the device held at most.
    emit: takes what is found; False: there is no time for another one.
    known: found before.
    made: seconds it took to make the program.
  """
  first = made + timed()['whole']
  each = [timed()]  # warms up; stands for what follows where there is no time
  warm = True
  while emit(known, first=first, each=each, peak=memory(), warm=warm):
    each = ([] if warm else each) + [timed()]
    warm = False
