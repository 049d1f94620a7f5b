"""Language models against transformers: checkpoints it writes, loaded by us.

Kernels are drawn wide, the table is not, and norms' scales lie around one: so
the likeliest token changes from step to step and every tensor matters.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl.models import convert
from gen_rl.models.files import weights
from gen_rl.policies import tokens
from gen_rl.types import Rows
from gen_rl.utils import tree

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
torch.set_num_threads(1)  # small products; other processes have the cores

V, LENGTHS, SAID, PAD = 61, (1, 4, 9, 6), 64, 0
ERROR = 1e-5  # of logits, in units of the largest
SIZES = dict(
  vocab_size=V, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
  num_attention_heads=4, num_key_value_heads=2, pad_token_id=PAD,
  bos_token_id=None, eos_token_id=None,
)  # fmt: skip
# Heads of Qwen3 have 8 numbers, and 4 x 8 is not the width.
KINDS = {
  'qwen2': ('Qwen2', dict(rope_parameters=dict(rope_theta=1e6))),
  'qwen3': ('Qwen3', dict(head_dim=8, tie_word_embeddings=False)),
  'qwen3, tied': ('Qwen3', dict(head_dim=8, tie_word_embeddings=True)),
  'llama': ('Llama', dict(rms_norm_eps=1e-5, num_key_value_heads=1)),
}


def model_of(kind):
  """Theirs, float32; numbers of numpy, so the same with any version."""
  family, options = KINDS[kind]
  if 'rope_parameters' in options:
    options = options | dict(
      rope_parameters=dict(rope_type='default', **options['rope_parameters'])
    )
  config = getattr(transformers, f'{family}Config')(**SIZES | options)
  model = getattr(transformers, f'{family}ForCausalLM')(config).eval()
  rng = np.random.default_rng(0)
  with torch.no_grad():
    for name, x in sorted(model.named_parameters()):
      noise = torch.from_numpy(rng.normal(size=x.shape)).float()
      std = 0.1 if 'embed' in name else 0.7
      x.copy_(1 + 0.3 * noise if 'norm' in name else std * noise)
  return model


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  """kind -> (their model, its folder, our net, our parameters)."""

  @functools.cache
  def load(kind):
    model = model_of(kind)
    folder = tmp_path_factory.mktemp('lm')
    model.save_pretrained(folder)
    return model, folder, *convert.load_lm(folder)

  return load


@pytest.fixture(params=list(KINDS))
def both(request, loaded):
  return loaded(request.param)


@functools.cache
def rows(k):
  """Prompts of unlike lengths, padded on the right, and actions after them."""
  rng = np.random.default_rng(1)
  b, l = len(LENGTHS), max(LENGTHS) + 2
  prompts = rng.integers(1, V, (b, l))
  prompts[np.arange(l) >= np.array(LENGTHS)[:, None]] = PAD
  return prompts.astype(np.int32), rng.integers(1, V, (b, k)).astype(np.int32)


def padded(pieces, left):
  """Ragged rows -> (ids [b l], attention mask [b l])."""
  l = max(map(len, pieces))
  ids, mask = np.full((len(pieces), l), PAD), np.zeros((len(pieces), l), int)
  for i, piece in enumerate(pieces):
    at = slice(l - len(piece), l) if left else slice(0, len(piece))
    ids[i, at], mask[i, at] = piece, 1
  return torch.from_numpy(ids), torch.from_numpy(mask)


def their_logits(model, prompts, actions, left):
  """Of actions [b k v], in one pass over rows that are padded."""
  real = [p[p != PAD] for p in prompts]
  whole = [np.concatenate([p, a]) for p, a in zip(real, actions, strict=True)]
  ids, mask = padded(whole, left)
  position = (mask.cumsum(1) - 1).clamp(min=0)
  with torch.no_grad():
    out = model(ids, attention_mask=mask, position_ids=position).logits.numpy()
  rows, k = [], actions.shape[1]
  for i, piece in enumerate(whole):
    end = out.shape[1] if left else len(piece)
    rows.append(out[i, end - k - 1 : end - 1])
  return np.stack(rows)


def error(found, want):
  assert found.shape == want.shape
  scale = np.abs(want).max()
  assert scale > 1
  return np.abs(found - want).max() / scale


@pytest.mark.parametrize('left', [False, True], ids=['right', 'left'])
def test_logits(both, left):
  """At every token of rows of unlike lengths, however theirs are padded."""
  model, _, net, params = both
  prompts, actions = rows(7)
  want = their_logits(model, prompts, actions, left)
  found = jax.jit(net.score)(params, dict(tokens=prompts), actions)
  assert error(found, want) < ERROR


def greedy(net, params, prompts, end=None, length=SAID):
  policy = tokens.tokens(net, length, end)
  b = len(prompts)
  keys = jax.random.split(jax.random.key(0), b)
  asked = Rows(
    cond=dict(tokens=jnp.asarray(prompts)), info={}, group=jnp.arange(b),
    keys=keys, group_keys=keys, key=keys[0],
  )  # fmt: skip
  return np.asarray(jax.jit(policy.ops['greedy'])(params, asked))


def generated(model, prompts, end=None):
  """(tokens [b k], logits of each [b k v]) of `generate`."""
  ids, mask = padded([p[p != PAD] for p in prompts], left=True)
  out = model.generate(
    ids, attention_mask=mask, do_sample=False, max_new_tokens=SAID,
    eos_token_id=end, pad_token_id=PAD, return_dict_in_generate=True,
    output_logits=True,
  )  # fmt: skip
  logits = torch.stack(out.logits, 1).numpy()
  return out.sequences[:, ids.shape[1] :].numpy(), logits


def test_greedy_tokens(both):
  """With cached keys and values there and here."""
  model, _, net, params = both
  prompts, _ = rows(1)
  want, logits = generated(model, prompts)
  assert want.shape == (len(prompts), SAID)
  # Neither constant nor a cycle, and no tie that rounding could decide.
  assert min(len(set(row)) for row in want.tolist()) >= 10
  best = np.sort(logits, -1)
  assert (best[..., -1] - best[..., -2]).min() > 10 * ERROR * np.abs(best).max()
  np.testing.assert_array_equal(greedy(net, params, prompts), want)


def test_rows_end_alike(loaded):
  """At a token that one row says in its midst; then there is padding."""
  model, _, net, params = loaded('qwen2')
  prompts, _ = rows(1)
  free, _ = generated(model, prompts)
  end = int(free[0, SAID // 3])
  want, _ = generated(model, prompts, end)
  assert (want[0] == PAD).sum() >= SAID // 4
  found = greedy(net, params, prompts, end)
  np.testing.assert_array_equal(found[:, : want.shape[1]], want)
  assert not found[:, want.shape[1] :].any()


def test_scanned_blocks(loaded):
  _, folder, net, params = loaded('qwen2')
  prompts, actions = rows(3)
  scanned, stacked = convert.load_lm(folder, scan=True)
  want = jax.jit(net.score)(params, dict(tokens=prompts), actions)
  found = jax.jit(scanned.score)(stacked, dict(tokens=prompts), actions)
  assert error(np.asarray(found), np.asarray(want)) < 1e-6


def test_fewer_ids_than_rows(loaded):
  _, folder, net, params = loaded('qwen2')
  prompts, actions = rows(3)
  few = V - 3
  smaller, same = convert.load_lm(folder, vocab=few)
  assert smaller.vocab == few and tree.equal(same, params)
  prompts, actions = prompts % few, actions % few
  want = jax.jit(net.score)(params, dict(tokens=prompts), actions)
  found = jax.jit(smaller.score)(params, dict(tokens=prompts), actions)
  np.testing.assert_array_equal(found, want[..., :few])


def test_files_in_parts(loaded, tmp_path):
  model, _, _, params = loaded('qwen2')
  model.save_pretrained(tmp_path, max_shard_size='10KB')
  assert len(list(tmp_path.glob('*.safetensors'))) > 2
  _, found = convert.load_lm(tmp_path)
  assert tree.equal(found, params)


def test_old_config_files(loaded, tmp_path):
  """transformers 4 writes theta at the top, and the type as `torch_dtype`."""
  model, folder, _, params = loaded('qwen2')
  config = json.loads((folder / 'config.json').read_text())
  rope = config.pop('rope_parameters')
  config |= dict(rope_theta=rope['rope_theta'], rope_scaling=None)
  config['torch_dtype'] = config.pop('dtype')
  (tmp_path / 'config.json').write_text(json.dumps(config))
  data = (folder / 'model.safetensors').read_bytes()
  (tmp_path / 'model.safetensors').write_bytes(data)
  net, found = convert.load_lm(tmp_path)
  assert tree.equal(found, params)
  prompts, actions = rows(3)
  want = their_logits(model, prompts, actions, left=True)
  assert (
    error(jax.jit(net.score)(found, dict(tokens=prompts), actions), want)
    < ERROR
  )


def test_bfloat16(tmp_path):
  """A file in bfloat16 is read exactly, and its arithmetic can be float32."""
  model_of('qwen2').to(torch.bfloat16).save_pretrained(tmp_path)
  exact = transformers.Qwen2ForCausalLM.from_pretrained(
    tmp_path, dtype=torch.float32
  )
  net, params = convert.load_lm(tmp_path)
  prompts, actions = rows(3)
  want = their_logits(exact, prompts, actions, left=True)
  found = jax.jit(net.score)(params, dict(tokens=prompts), actions)
  assert error(found, want) < ERROR
  kept = convert.load_lm(tmp_path, 'bfloat16', dtype='bfloat16')
  assert {x.dtype for x in jax.tree.leaves(kept[1])} == {jnp.dtype('bfloat16')}
  rough = jax.jit(kept[0].score)(kept[1], dict(tokens=prompts), actions)
  assert 1e-4 < error(rough, want) < 0.1


def test_config_init_takes_the_saved_parameters(loaded, tmp_path):
  """What a run starts from: a file with the names of the policy."""
  _, _, net, params = loaded('qwen2')
  path = tmp_path / 'lm.safetensors'
  weights.save(path, params)
  shapes = jax.eval_shape(tokens.tokens(net).init, jax.random.key(0))
  found, _ = weights.load(path, shapes, cast=True)
  assert tree.equal(found, params)
