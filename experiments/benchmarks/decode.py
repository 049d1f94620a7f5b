"""Decoding: our policy of tokens against transformers' generate, same weights.

  python experiments/benchmarks/decode.py   # prints and renews README.md

Needs torch and transformers (extra "parity"). The two take turns; each turn is
the second of two calls in a row. With `--ours` (on an accelerator, without
torch) it times ours alone, of the size that is asked for.
"""

import functools
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
from gen_rl.models import convert, lm
from gen_rl.policies import tokens
from gen_rl.types import Rows
from gen_rl.utils import system

SIZE = dict(
  vocab_size=1024, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
  num_attention_heads=8, num_key_value_heads=4, head_dim=32,
  max_position_embeddings=512,
)  # fmt: skip
# A Qwen2.5-3B, its weights random.
LARGE = dict(
  vocab=151_936, width=2048, layers=36, heads=16, kv_heads=2, head_dim=128,
  mlp=11_008, theta=1e6, qk_norm=False, bias=True, dtype='bfloat16', scan=True,
)  # fmt: skip
PROMPT, SAID, TURNS = 32, 128, 7
BATCHES = 1, 4, 16, 64
THREADS = 2
_OURS = flags.DEFINE_bool('ours', False, 'Only ours, of 3B parameters.')


def rows(prompts: np.ndarray) -> Rows:
  """Every prompt a row of its own."""
  b = len(prompts)
  keys = jax.random.split(jax.random.key(0), b)
  return Rows(
    dict(tokens=jnp.asarray(prompts, jnp.int32)), {}, jnp.arange(b), keys, keys,
    jax.random.key(0),
  )  # fmt: skip


def prompts(batch: int, vocab: int) -> np.ndarray:
  rng = np.random.default_rng(0)
  return rng.integers(1, vocab, (batch, PROMPT))


def seconds(function) -> float:
  """Of the second of two calls."""
  function()
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def ours(net, params, batch: int, greedy: bool):
  """(function that decodes a batch, its tokens)."""
  policy = tokens.tokens(net, length=SAID)
  run = policy.ops['greedy'] if greedy else (
    lambda params, rows: policy.rollout(params, rows, jnp.int32(0)).actions
  )  # fmt: skip
  run = jax.jit(run)
  made = rows(prompts(batch, net.vocab))
  return lambda: np.asarray(jax.block_until_ready(run(params, made)))


def compare() -> str:
  """The table of both, in turns."""
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
  params = jax.tree.map(jnp.asarray, params)
  lines = []
  for batch in BATCHES:
    ids = torch.from_numpy(prompts(batch, net.vocab))

    @torch.inference_mode()
    def theirs(greedy: bool, ids=ids):
      out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=not greedy,
        max_new_tokens=SAID, min_new_tokens=SAID, top_k=0,
      )  # fmt: skip
      return out[:, PROMPT:].numpy()

    for greedy in (True, False):
      own = ours(net, params, batch, greedy)
      other = functools.partial(theirs, greedy)
      if greedy:
        assert (own() == other()).all(), 'the tokens differ'
      times = []
      for turn in range(TURNS):
        pair = {}
        for name in ('ours', 'theirs')[:: 1 if turn % 2 else -1]:
          pair[name] = seconds(own if name == 'ours' else other)
        times.append(pair)
      ratios = [t['theirs'] / t['ours'] for t in times]
      low, middle, high = statistics.quantiles(ratios, n=4)
      rates = (
        batch * SAID / statistics.median(t[name] for t in times)
        for name in ('ours', 'theirs')
      )
      lines.append((
        f'{batch}, {"greedy" if greedy else "sampled"}',
        *(f'{rate:,.0f}' for rate in rates),
        f'{middle:.1f} ({low:.1f} to {high:.1f})',
      ))  # fmt: skip
  heads = ('batch', 'ours, tokens/s', 'transformers, tokens/s', 'ratio')
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
    own = ours(net, params, batch, False)
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
  if _OURS.value:
    print(f'{where("jax", "flax")}\n\n{large()}')
    return
  libraries = 'jax', 'flax', 'torch', 'transformers'
  part = f'{where(*libraries)}\n\n{compare()}'
  print(part)
  readme = pathlib.Path(__file__).with_name('README.md')
  tables.fill_file(readme, dict(decode=part))


if __name__ == '__main__':
  app.run(main)
