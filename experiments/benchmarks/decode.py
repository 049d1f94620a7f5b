"""Decoding: our policy of tokens against transformers' generate, same weights.

  python experiments/benchmarks/decode.py   # prints and renews README.md

Needs torch and transformers (extra "parity"). The two take turns; each turn is
the second of two calls in a row. With `--ours` (on an accelerator, without
torch) it times ours alone, of the size that is asked for; with `--bytes` (extra
"plan") it compiles a step of that size for TPUs and counts what moves.
"""

import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from importlib import metadata

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

from experiments import tables
from gen_rl import rollout
from gen_rl.models import convert, lm
from gen_rl.policies import speech, tokens
from gen_rl.types import Rows
from gen_rl.utils import chips, hlo, system

SIZE = dict(
  vocab_size=1024, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
  num_attention_heads=8, num_key_value_heads=4, head_dim=32,
  max_position_embeddings=2048,
)  # fmt: skip
# A Qwen2.5-3B, its weights random.
LARGE = dict(
  vocab=151_936, width=2048, layers=36, heads=16, kv_heads=2, head_dim=128,
  mlp=11_008, theta=1e6, qk_norm=False, bias=True, dtype='bfloat16', scan=True,
)  # fmt: skip
PROMPT, SAID, TURNS = 32, 128, 5
BATCHES = 1, 16, 64
THREADS = 2
# Groups of 8 that ask the same.
MEMBERS, GROUPS, LONG_PROMPT, LONG_SAID, LONG_TURNS = 8, (8,), 1000, 64, 2
# Rows of very different lengths: most end early, some do not.
ENDING, MEAN, MOST = 64, 40, 256
TOPOLOGIES = 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'
_OURS = flags.DEFINE_bool('ours', False, 'Only ours, of 3B parameters.')
_BYTES = flags.DEFINE_bool('bytes', False, 'Only what a step of ours moves.')


def rows(prompts: np.ndarray, members: int = 1) -> Rows:
  """Every prompt `members` rows."""
  batch = dict(
    tokens=prompts.astype(np.int32), info={},
    prompt_id=np.arange(len(prompts), dtype=np.int32),
  )  # fmt: skip
  return rollout.make_rows(batch, members, jax.random.key(0), jnp.int32(0))


def prompts(batch: int, vocab: int, length: int = PROMPT) -> np.ndarray:
  rng = np.random.default_rng(0)
  return rng.integers(1, vocab, (batch, length))


def seconds(function) -> float:
  """Of the second of two calls."""
  function()
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def ours(net, params, made: Rows, greedy: bool, said: int = SAID, end=None):
  """A function that decodes rows."""
  policy = tokens.tokens(net, length=said, end=end)
  run = policy.ops['greedy'] if greedy else (
    lambda params, rows: policy.rollout(params, rows, jnp.int32(0)).actions
  )  # fmt: skip
  run = jax.jit(run)
  return lambda: np.asarray(jax.block_until_ready(run(params, made)))


def turns(functions: dict, count: int) -> tuple[dict, tuple]:
  """({name: median seconds}, quartiles of second's over first's)."""
  times = []
  for turn in range(count):
    names = list(functions)[:: 1 if turn % 2 else -1]
    times.append({name: seconds(functions[name]) for name in names})
  first, second = functions
  ratios = [t[second] / t[first] for t in times]
  middle = {
    name: statistics.median(t[name] for t in times) for name in functions
  }
  return middle, statistics.quantiles(ratios, n=4)


def ratio(quartiles: tuple) -> str:
  low, middle, high = quartiles
  return f'{middle:.1f} ({low:.1f} to {high:.1f})'


def models():
  """(transformers' model, our net, its parameters), random."""
  import torch  # noqa: PLC0415 - an extra
  import transformers  # noqa: PLC0415

  torch.set_num_threads(THREADS)
  torch.manual_seed(0)
  config = transformers.Qwen3Config(
    **SIZE, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    initializer_range=0.2,
  )  # fmt: skip
  model = transformers.Qwen3ForCausalLM(config).eval()
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    net, params = convert.load_lm(folder)
  return model, net, jax.tree.map(jnp.asarray, params)


def theirs(model, made: Rows, greedy: bool, said: int):
  """A function that decodes the same rows."""
  import torch  # noqa: PLC0415

  ids = torch.from_numpy(np.array(made.cond['tokens'], np.int64))

  @torch.inference_mode()
  def run():
    out = model.generate(
      ids, attention_mask=torch.ones_like(ids), do_sample=not greedy,
      max_new_tokens=said, min_new_tokens=said, top_k=0,
    )  # fmt: skip
    return out[:, ids.shape[1] :].numpy()

  return run


def compare(model, net, params) -> str:
  """The table of both, in turns."""
  lines = []
  asked = [
    (f'{batch}', rows(prompts(batch, net.vocab)), SAID, TURNS)
    for batch in BATCHES
  ]
  for count in GROUPS:
    made = rows(prompts(count, net.vocab, LONG_PROMPT), MEMBERS)
    name = f'{count} x {MEMBERS} of a prompt of {LONG_PROMPT:,}'
    asked.append((name, made, LONG_SAID, LONG_TURNS))
  for name, made, said, count in asked:
    for greedy in (True, False)[: 1 if said == LONG_SAID else 2]:
      pair = dict(
        ours=ours(net, params, made, greedy, said),
        theirs=theirs(model, made, greedy, said),
      )
      if greedy:
        assert (pair['ours']() == pair['theirs']()).all(), 'the tokens differ'
      times, quartiles = turns(pair, count)
      rates = (len(made.group) * said / t for t in times.values())
      lines.append((
        f'{name}, {"greedy" if greedy else "sampled"}',
        *(f'{rate:,.0f}' for rate in rates),
        ratio(quartiles),
      ))  # fmt: skip
  heads = ('batch', 'ours, tokens/s', 'transformers, tokens/s', 'ratio')
  return tables.markdown(heads, lines)


def ended(net, params) -> str:
  """Rows that end, said in one loop or in loops of those that go on."""
  rng = np.random.default_rng(0)
  lengths = np.minimum(rng.geometric(1 / MEAN, ENDING), MOST)
  end = net.vocab - 1
  forced = np.where(np.arange(MOST) < lengths[:, None] - 1, 1, end)
  made = rows(prompts(ENDING, net.vocab))
  made = made.replace(cond=made.cond | dict(forced=jnp.asarray(forced)))
  arms = {}
  for name, loops in (('several', speech.LOOPS), ('one', 1)):
    speech.LOOPS, before = loops, speech.LOOPS
    arms[name] = ours(net, params, made, False, MOST, end)
    arms[name]()  # traced here
    speech.LOOPS = before
  times, quartiles = turns(arms, LONG_TURNS)
  total = lengths.sum()
  line = (
    f'{ENDING} rows of 1 to {lengths.max()} tokens, {lengths.mean():.0f} on '
    'average',
    *(f'{total / times[name]:,.0f}' for name in ('one', 'several')),
    ratio(quartiles),
  )  # fmt: skip
  heads = ('rows', 'one loop, tokens/s', 'several, tokens/s', 'ratio')
  return tables.markdown(heads, [line])


def step_bytes(net, shapes, device, members: int) -> tuple[float, float]:
  """(bytes that a step of 64 rows moves on a chip, bytes of its cache)."""
  one = jax.sharding.SingleDeviceSharding(device)

  def placed(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one)

  def made(params, asked):
    cache, _ = net.prefill(params, dict(tokens=asked), LONG_SAID)
    return net.repeat(cache, members)

  asked = jax.ShapeDtypeStruct((ENDING // members, LONG_PROMPT), jnp.int32)
  cache = jax.eval_shape(made, shapes, asked)
  token = jax.ShapeDtypeStruct((ENDING,), jnp.int32)
  arguments = jax.tree.map(placed, (shapes, cache, token))
  with chips.TRACED_FOR(device):
    lowered = jax.jit(net.step, donate_argnums=1).lower(*arguments)
  kept = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
  return hlo.traffic(lowered.compile().as_text()).memory, kept


def moved() -> str:
  """What a step moves through memory, of the compiled program, 3B."""
  net = lm.lm(**LARGE)
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16),
    jax.eval_shape(net.init, jax.random.key(0)),
  )
  weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
  lines = []
  for topology in TOPOLOGIES:
    devices, chip = chips.devices(topology)
    for members in (1, MEMBERS):
      found, kept = step_bytes(net, shapes, devices[0], members)
      bound = weights + kept
      lines.append((
        f'TPU {topology.partition(":")[0]}', f'{ENDING // members} x {members}',
        f'{found / 1e9:.2f}', f'{bound / 1e9:.2f}', f'{found / bound:.2f}',
        f'{ENDING * chip.bandwidth / found:,.0f}',
      ))  # fmt: skip
  heads = (
    'chip', 'prompts x rows', 'a step, GB', 'weights and cache, GB', 'ratio',
    'tokens/s at most',
  )  # fmt: skip
  return tables.markdown(heads, lines)


def large() -> str:
  """Ours alone, 3B parameters, random weights."""
  net = lm.lm(**LARGE)
  params = jax.jit(
    lambda key: jax.tree.map(
      lambda x: x.astype(jnp.bfloat16), net.init(key)
    )
  )(jax.random.key(0))  # fmt: skip
  lines = []
  for batch in BATCHES:
    own = ours(net, params, rows(prompts(batch, net.vocab)), False)
    each = statistics.median(seconds(own) for _ in range(3))
    lines.append((str(batch), f'{batch * SAID / each:,.0f}'))
  return tables.markdown(('batch', 'ours, tokens/s'), lines)


def where(*libraries: str) -> str:
  """Date, machine and versions."""
  env = system.environment()
  versions = ', '.join(f'{n} {metadata.version(n)}' for n in libraries)
  return (
    f'{time.strftime("%Y-%m-%d")}, {env["platform"]}, {env["cpus"]} cores '
    f'({env["device"]}), Python {env["python"]}, {versions}.'
  )


def main(_) -> None:
  readme = pathlib.Path(__file__).with_name('README.md')
  if _OURS.value:
    print(f'{where("jax", "flax")}\n\n{large()}')
    return
  if _BYTES.value:
    part = f'{where("jax", "flax", "libtpu")}\n\n{moved()}'
    print(part)
    tables.fill_file(readme, dict(decode_bytes=part))
    return
  made = models()
  _, *own = made
  said = where('jax', 'flax', 'torch', 'transformers')
  parts = dict(
    decode=f'{said}\n\n{compare(*made)}',
    decode_ended=f'{said}\n\n{ended(*own)}',
  )
  print(*parts.values(), sep='\n\n')
  tables.fill_file(readme, parts)


if __name__ == '__main__':
  app.run(main)
