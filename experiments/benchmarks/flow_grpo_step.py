"""A step of Flow-GRPO on Stable Diffusion 3.5 medium: ours and PyTorch's.

  python experiments/benchmarks/flow_grpo_step.py   # prints, fills README
  python experiments/benchmarks/flow_grpo_step.py --only=ours

On a GPU the size is the real one, 512 x 512, drawn weights, bfloat16; on a CPU
everything is tiny, and what is compared is overhead. Needs torch, diffusers and
peft (extra "parity") but for --only=ours. Each contestant runs in a process of
its own, one after the other, so that none holds memory of another; a first step
compiles, a second warms up, and the median of the rest counts.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from importlib import metadata

from absl import app, flags

from experiments import tables

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = flags.DEFINE_integer('steps', 5, 'Steps that count.')
ONLY = flags.DEFINE_string('only', '', 'Contestants to run, by commas.')
TASKS = flags.DEFINE_string('tasks', '', 'Tasks to run, by commas; all.')
RUN = flags.DEFINE_string('run', '', 'Internal: "contestant/task", in here.')
FIELDS = flags.DEFINE_string('set', '', 'Fields of ours, "name=value,...".')
SIZE = flags.DEFINE_string('size', '', 'full or tiny; by the device.')

CONTESTANTS = 'ours', 'torch tuned', 'torch eager'
# (guidance, weight of the KL term)
PROBLEMS = {
  'guided, KL': (4.5, 0.04),
  'guided': (4.5, 0.0),
  'no guidance': (1.0, 0.0),
}
# Decisions in a call of the backward pass; ours takes whole rows of nine.
CALLS = {
  'full': {'ours': 9, 'torch tuned': 12, 'torch eager': 8},
  'tiny': {'ours': 72, 'torch tuned': 72, 'torch eager': 24},
}
SIZES = dict(
  full=dict(
    side=64, layers=24, heads=24, head_dim=64, dual=13, text=4096, pooled=2048,
    grid=384, sample_size=128, words=205, rows=24, steps=10,
    channels=(128, 256, 512, 512), blocks=2, groups=32,
  ),
  tiny=dict(
    side=8, layers=4, heads=4, head_dim=16, dual=2, text=64, pooled=32,
    grid=16, sample_size=16, words=9, rows=24, steps=10,
    channels=(16, 32), blocks=1, groups=8,
  ),
)  # fmt: skip


def torch_task(size: str, problem: str) -> Any:
  """What `torch_step` computes."""
  from experiments.benchmarks import torch_step  # noqa: PLC0415 - an extra

  s = SIZES[size]
  guidance, kl = PROBLEMS[problem]
  width = s['heads'] * s['head_dim']
  levels = len(s['channels'])
  return torch_step.Task(
    transformer=dict(
      sample_size=s['side'], patch_size=2, in_channels=16, out_channels=16,
      num_layers=s['layers'], attention_head_dim=s['head_dim'],
      num_attention_heads=s['heads'], joint_attention_dim=s['text'],
      caption_projection_dim=width, pooled_projection_dim=s['pooled'],
      pos_embed_max_size=s['grid'], qk_norm='rms_norm',
      dual_attention_layers=tuple(range(s['dual'])),
    ),
    vae=dict(
      down_block_types=['DownEncoderBlock2D'] * levels,
      up_block_types=['UpDecoderBlock2D'] * levels,
      block_out_channels=s['channels'], layers_per_block=s['blocks'],
      latent_channels=16, norm_num_groups=s['groups'], scaling_factor=1.5305,
      shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
    ),
    text=s['words'], rows=s['rows'], steps=s['steps'], guidance=guidance, kl=kl,
  )  # fmt: skip


def run_torch(size: str, problem: str, tuned: bool, steps: int) -> dict:
  """Seconds by stage, compile time and memory."""
  import torch  # noqa: PLC0415 - an extra

  from experiments.benchmarks import torch_step  # noqa: PLC0415

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  rows = CALLS[size]['torch tuned' if tuned else 'torch eager']
  step = torch_step.Step(torch_task(size, problem), device, tuned, rows)
  start = time.perf_counter()
  step.timed()
  first = time.perf_counter() - start
  step.timed()
  if device == 'cuda':
    torch.cuda.reset_peak_memory_stats()
  each = [step.timed() for _ in range(steps)]
  peak = torch.cuda.max_memory_allocated() if device == 'cuda' else None
  return dict(first=first, each=each, peak=peak)


def our_config(size: str, problem: str, fields: str) -> Any:
  """The config of the published method with this size in it."""
  from configs import sd3_flow_grpo  # noqa: PLC0415 - jax: not in every process

  s = SIZES[size]
  guidance, kl = PROBLEMS[problem]
  c = sd3_flow_grpo.get_config()
  c.model.net.update(
    image=(s['side'], s['side'], 16), layers=s['layers'], heads=s['heads'],
    head_dim=s['head_dim'], dual=s['dual'], text=s['text'], pooled=s['pooled'],
    grid=s['grid'], sample_size=s['sample_size'],
  )  # fmt: skip
  c.model.vae.update(
    channels=s['channels'], blocks=s['blocks'], groups=s['groups']
  )
  c.data.update(prompts_per_step=1, group_size=s['rows'])
  c.data.embed.encoder = dict(name='')
  c.rewards = dict(chroma=dict(name='saturation', weight=1.0))
  c.eval.gold = dict(chroma=dict(name='saturation'))
  c.policy.update(steps=s['steps'], guidance_scale=guidance)
  c.objective.kl.weight = kl
  c.ema = 0.0
  c.updates = 1
  c.rollout_chunks = 1
  c.microbatches = s['rows'] * (s['steps'] - 1) // CALLS[size]['ours']
  c.model.net.remat = 'none'
  if size == 'tiny':
    c.model.net.dtype = c.model.vae.dtype = c.model.vae_dtype = 'float32'
    c.frozen_dtype = 'float32'
    c.model.decode_rows = 0
  else:
    c.model.net.attention = 'cudnn'
  for field in filter(None, fields.split(',')):
    name, _, value = field.partition('=')
    c.update_from_flattened_dict({name: json.loads(value)})
  return c


def run_ours(size: str, problem: str, steps: int, fields: str) -> dict:
  """Likewise, with the analytic operations of a step."""
  import jax  # noqa: PLC0415
  import jax.numpy as jnp  # noqa: PLC0415

  from gen_rl import assemble, initial, sharding  # noqa: PLC0415
  from gen_rl.utils import flops  # noqa: PLC0415

  c, s = our_config(size, problem, fields), SIZES[size]
  built = assemble.setup(c)
  layout = sharding.one_device()
  step, tx, advantage = assemble.make_step(c, built, layout)
  params = initial.params(c, built.policy)
  state = initial.state(c, built, params, tx, advantage)
  del params
  key = jax.random.key(0)

  def draw(i: int, *shape: int):
    x = jax.random.normal(jax.random.fold_in(key, i), (1, *shape))
    return x.astype(c.model.net.dtype)

  cond = {
    f'{which}{name}': draw(2 * i + j, *shape)
    for i, which in enumerate(('', 'null_'))
    for j, (name, shape) in enumerate(
      dict(text=(s['words'], s['text']), pooled=(s['pooled'],)).items()
    )
  }
  batch = dict(
    tokens=jnp.zeros((1, c.data.length), jnp.int32),
    prompt_id=jnp.zeros(1, jnp.int32), info={}, cond=cond,
  )  # fmt: skip
  traced = step.train_step.trace(state, batch, key)
  count = flops.count(traced.jaxpr)
  start = time.perf_counter()
  program = traced.lower().compile()
  compiled = time.perf_counter() - start
  each = []
  for i in range(steps + 2):
    start = time.perf_counter()
    state, logged = program(state, batch, jax.random.fold_in(key, i))
    logged = jax.device_get(logged)
    each.append(dict(whole=time.perf_counter() - start))
    assert logged['optim/grad_norm'] > 0 and logged['optim/skipped'] == 0
  first = compiled + each[0]['whole']
  # The parts by programs of their own, as with a reward on the host.
  for timed in [*each[2:4], *each[2:]]:
    start = time.perf_counter()
    drawn = jax.block_until_ready(step.sample(state, batch, key))
    middle = time.perf_counter()
    traj, inputs, outs = drawn
    state, _ = step.learn(state, traj, inputs, outs, key)
    jax.block_until_ready(state)
    timed |= dict(sample=middle - start, learn=time.perf_counter() - middle)
  memory = jax.local_devices()[0].memory_stats() or {}
  needs = program.memory_analysis()
  return dict(
    first=first,
    each=each[2:],
    peak=memory.get('peak_bytes_in_use'),
    planned=needs.argument_size_in_bytes
    + needs.temp_size_in_bytes
    + needs.output_size_in_bytes
    - needs.alias_size_in_bytes,
    flops=count.flops,
  )


def row(
  task: str, name: str, found: dict, ours: dict | None, chip: Any, samples: int
) -> tuple[str, ...]:
  """A line of the table."""

  def middle(stage: str) -> float:
    return statistics.median(e[stage] for e in found['each'])

  whole = middle('whole')
  operations = (found if name == 'ours' else ours or {}).get('flops')
  rate = operations / whole if operations else None
  ratio = '–'
  if ours and name != 'ours':
    own = statistics.median(e['whole'] for e in ours['each'])
    ratio = f'{whole / own:.2f}'
  share = f'{rate / chip.flops:.0%}' if rate and chip.flops else '–'
  peak = found['peak']
  return (
    f'{task}: {name}', f'{samples / whole:.2f}', ratio, f'{whole:.3f}',
    f'{middle("sample"):.3f} + {middle("learn"):.3f}',
    f'{rate / 1e12:.2f}' if rate else '–', share,
    f'{peak / 2**30:.1f}' if peak else '–', f'{found["first"]:.1f}',
  )  # fmt: skip


HEADS = (
  '', 'samples/s', 'times ours', 'a step, s', 'sampling + learning, s',
  'TFLOP/s', 'MFU', 'peak, GiB', 'first step, s',
)  # fmt: skip


def device() -> list[Any]:
  """[platform, kind, machine, cores], asked in another process.

  One that has looked at a GPU holds some of its memory.
  """
  code = (
    'import jax, json; from gen_rl.utils import system; '
    'e = system.environment(); d = jax.local_devices()[0]; '
    'print(json.dumps([d.platform, d.device_kind, e["platform"], e["cpus"]]))'
  )
  out = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True,
    text=True,
  )  # fmt: skip
  return json.loads(out.stdout.splitlines()[-1])


def main(_) -> None:
  if RUN.value:
    name, size, problem = RUN.value.split('/')
    if name == 'ours':
      found = run_ours(size, problem, STEPS.value, FIELDS.value)
    else:
      found = run_torch(size, problem, name == 'torch tuned', STEPS.value)
    print(json.dumps(found))
    return
  from gen_rl.utils import chips  # noqa: PLC0415 - after the flags

  platform, kind, machine, cores = device()
  size = SIZE.value or ('tiny' if platform == 'cpu' else 'full')
  chip = chips.of_kind(kind)
  names = ONLY.value.split(',') if ONLY.value else CONTESTANTS
  problems = TASKS.value.split(';') if TASKS.value else PROBLEMS
  lines = []
  for problem in problems:
    ours = None
    for name in names:
      command = [
        sys.executable, __file__, f'--run={name}/{size}/{problem}',
        f'--steps={STEPS.value}', f'--set={FIELDS.value}',
      ]  # fmt: skip
      out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
      if out.returncode:
        print(f'{problem}: {name} failed: {out.stderr[-2000:]}', flush=True)
        continue
      found = json.loads(out.stdout.splitlines()[-1])
      ours = found if name == 'ours' else ours
      lines.append(row(problem, name, found, ours, chip, SIZES[size]['rows']))
      print(lines[-1], found.get('planned'), flush=True)
  libraries = ['jax', 'flax'] + (
    ['torch', 'diffusers'] if len(names) > 1 else []
  )
  versions = ', '.join(f'{n} {metadata.version(n)}' for n in libraries)
  head = (
    f'{time.strftime("%Y-%m-%d")}, {machine}, {cores} cores ({kind}), size '
    f'{size}, {versions}.'
  )
  table = f'{head}\n\n{tables.markdown(HEADS, lines)}'
  print(table)
  if not ONLY.value and not TASKS.value:
    readme = pathlib.Path(__file__).with_name('README.md')
    part = 'step_gpu' if platform != 'cpu' else 'step_cpu'
    tables.fill_file(readme, {part: table})


if __name__ == '__main__':
  app.run(main)
