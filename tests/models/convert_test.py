"""Released checkpoints: the layout by hand, and complaints.

tests/parity/lm_test.py compares what is computed with transformers.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from gen_rl.models import convert, lm
from gen_rl.models.files import weights
from gen_rl.utils import tree

CONFIG = dict(
  model_type='qwen2', vocab_size=6, hidden_size=2, num_hidden_layers=1,
  num_attention_heads=4, num_key_value_heads=2, head_dim=2, intermediate_size=3,
  rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=True, pad_token_id=0,
  hidden_act='silu', use_sliding_window=False, sliding_window=32,
)  # fmt: skip
# config.json of Qwen/Qwen3-0.6B, what matters of it.
QWEN3 = dict(
  model_type='qwen3', attention_bias=False, bos_token_id=151643,
  eos_token_id=151645, head_dim=128, hidden_act='silu', hidden_size=1024,
  intermediate_size=3072, max_window_layers=28, num_attention_heads=16,
  num_hidden_layers=28, num_key_value_heads=8, rms_norm_eps=1e-6,
  rope_scaling=None, rope_theta=1000000, sliding_window=None,
  tie_word_embeddings=True, use_sliding_window=False, vocab_size=151936,
)  # fmt: skip


def tensors(layer='model.layers.0.'):
  """Every number of a block's tensors says which row it belongs to."""

  def rows(first, n):
    return first + np.arange(n, dtype=np.float32)

  qkv = dict(q=rows(0, 8), k=rows(10, 4), v=rows(20, 4))
  return {
    'model.embed_tokens.weight': np.arange(12, dtype=np.float32).reshape(6, 2),
    'model.norm.weight': rows(1, 2),
    **{
      f'{layer}self_attn.{n}_proj.weight': np.stack([x, x + 100], 1)
      for n, x in qkv.items()
    },
    **{f'{layer}self_attn.{n}_proj.bias': -x for n, x in qkv.items()},
    f'{layer}self_attn.o_proj.weight': rows(0, 16).reshape(2, 8),
    f'{layer}mlp.gate_proj.weight': rows(0, 6).reshape(3, 2),
    f'{layer}mlp.up_proj.weight': rows(6, 6).reshape(3, 2),
    f'{layer}mlp.down_proj.weight': rows(0, 6).reshape(2, 3),
    f'{layer}input_layernorm.weight': rows(3, 2),
    f'{layer}post_attention_layernorm.weight': rows(5, 2),
  }


def write(folder, config=(), **changes):
  """A folder; a tensor that is None is left out."""
  found = {
    name: np.ascontiguousarray(x)
    for name, x in (tensors() | changes).items()
    if x is not None
  }
  safetensors_numpy.save_file(found, folder / 'model.safetensors')
  (folder / 'config.json').write_text(json.dumps(CONFIG | dict(config)))
  return folder


def test_layout_by_hand(tmp_path):
  net, params = convert.load_lm(write(tmp_path))
  like = jax.eval_shape(net.init, jax.random.key(0))
  assert jax.tree.structure(like) == jax.tree.structure(params)
  found = tree.named(params)
  for name, leaf in tree.named(like).items():
    assert (found[name].shape, found[name].dtype) == (leaf.shape, jnp.float32)
  # Two groups: heads 0, 1, key 0, value 0; heads 2, 3, key 1, value 1.
  columns = [0, 1, 2, 3, 10, 11, 20, 21, 4, 5, 6, 7, 12, 13, 22, 23]
  columns = np.asarray(columns, np.float32)
  block = params['decoder']['block_0']
  np.testing.assert_array_equal(
    block['qkv']['kernel'], [columns, columns + 100]
  )
  np.testing.assert_array_equal(block['qkv']['bias'], -columns)
  np.testing.assert_array_equal(
    block['out']['kernel'], [[i, i + 8] for i in range(8)]
  )
  np.testing.assert_array_equal(block['up']['kernel'], [[6, 8, 10], [7, 9, 11]])
  np.testing.assert_array_equal(block['gate']['kernel'], [[0, 2, 4], [1, 3, 5]])
  np.testing.assert_array_equal(
    block['down']['kernel'], [[0, 3], [1, 4], [2, 5]]
  )
  np.testing.assert_array_equal(block['norm_a']['scale'], [3, 4])
  np.testing.assert_array_equal(block['norm_m']['scale'], [5, 6])
  np.testing.assert_array_equal(params['decoder']['norm']['scale'], [1, 2])


def test_config_of_a_released_model():
  """Table 1 of arXiv 2505.09388, and the docstring of `models.lm`."""
  assert convert.lm_config(QWEN3) == dict(
    vocab=151936, rows=151936, width=1024, layers=28, heads=16, kv_heads=8,
    head_dim=128, mlp=3072, theta=1e6, qk_norm=True, bias=False, tied=True,
    eps=1e-6,
  )  # fmt: skip
  net = lm.lm(**convert.lm_config(QWEN3))
  shapes = jax.eval_shape(net.init, jax.random.key(0))
  assert tree.size(shapes) == 596_049_920  # the model card says 0.6 B


def test_theta_of_either_place():
  new = {k: v for k, v in QWEN3.items() if not k.startswith('rope')}
  new['rope_parameters'] = dict(rope_theta=5e5, rope_type='default')
  assert convert.lm_config(new)['theta'] == 5e5
  del new['rope_parameters']
  assert convert.lm_config(new)['theta'] == 1e4  # the first Llamas say none


@pytest.mark.parametrize(
  'change, says',
  [
    (dict(model_type='mistral'), "'mistral'; qwen2, qwen3, llama can be"),
    (dict(model_type=None), 'model_type=None'),
    (dict(hidden_size=None), 'lacks the whole number hidden_size'),
    (dict(hidden_act='gelu'), "hidden_act='gelu'"),
    (dict(rope_scaling=dict(type='yarn', factor=4)), 'scaled rotations.*yarn'),
    (
      dict(rope_parameters=dict(rope_type='llama3', rope_theta=5e5)),
      'scaled rotations.*llama3',
    ),
    (dict(partial_rotary_factor=0.5), 'part of a head, 0.5'),
    (
      dict(use_sliding_window=True, sliding_window=8, max_window_layers=2),
      'windows of attention',
    ),
    (dict(layer_types=['full_attention', 'sliding_attention']), 'windows'),
    (dict(attention_bias=True), 'attention_bias=true'),
    (dict(mlp_bias=True), 'mlp_bias=true'),
    (dict(quantization_config=dict(bits=4)), 'quantised'),
  ],
  ids=lambda x: x if isinstance(x, str) else '-'.join(x),
)
def test_what_is_not_computed_is_refused(change, says):
  with pytest.raises(ValueError, match=says) as error:
    convert.lm_config(QWEN3 | change)
  assert '\n' not in str(error.value)


def test_a_window_that_no_layer_uses_is_none():
  unused = dict(use_sliding_window=True, sliding_window=8, max_window_layers=28)
  assert convert.lm_config(QWEN3 | unused) == convert.lm_config(QWEN3)


def test_everything_wrong_with_tensors_is_in_one_sentence(tmp_path):
  layer = 'model.layers.0.'
  changes = {
    f'{layer}self_attn.k_proj.bias': None,
    f'{layer}self_attn.o_proj.bias': np.zeros(2, np.float32),
    f'{layer}mlp.up_proj.weight': np.zeros((2, 3), np.float32),
    'model.norm.weight': np.zeros(2, np.int32),
    'model.layers.1.mlp.up_proj.weight': np.zeros((3, 2), np.float32),
  }
  with pytest.raises(weights.WeightsError) as error:
    convert.load_lm(write(tmp_path, **changes))
  text = str(error.value)
  assert text.startswith(f'{tmp_path} does not fit: ') and '\n' not in text
  assert f'missing {layer}self_attn.k_proj.bias;' in text
  more = 'model.layers.0.self_attn.o_proj.bias, model.layers.1.mlp.up_proj'
  assert f'unexpected {more}.weight;' in text
  assert (
    f'{layer}mlp.up_proj.weight is float32[2, 3] where floats[3, 2]' in text
  )
  assert 'model.norm.weight is I32[2] where floats[2]' in text


def test_a_tied_head_may_be_written_if_it_is_the_table(tmp_path):
  """So Qwen3-0.6B is; wavelengths stand in old files of Llama."""
  table = tensors()['model.embed_tokens.weight']
  same = {
    'lm_head.weight': table,
    'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(1, np.float32),
  }
  _, params = convert.load_lm(write(tmp_path, **same))
  assert 'head' not in params
  other = {'lm_head.weight': table + 1}
  with pytest.raises(weights.WeightsError, match='lm_head.weight is not model'):
    convert.load_lm(write(tmp_path, **other))


@pytest.mark.parametrize('pad', [None, -1, 6])
def test_padding_has_to_be_named(tmp_path, pad):
  folder = write(tmp_path, dict(pad_token_id=pad))
  with pytest.raises(ValueError, match='set pad to the id'):
    convert.load_lm(folder)
  net, _ = convert.load_lm(folder, pad=5, vocab=4)
  assert net.vocab == 4
  assert net.null(dict(tokens=jnp.ones((1, 2), jnp.int32)))['tokens'].max() == 5


def test_types(tmp_path):
  half = {n: x.astype(jnp.bfloat16) for n, x in tensors().items()}
  folder = write(tmp_path, **half)
  for name in 'float32', 'bfloat16':
    _, params = convert.load_lm(folder, name)
    for leaf in jax.tree.leaves(params):
      assert leaf.dtype == name
    kernel = params['decoder']['block_0']['qkv']['kernel']
    # 103 and its like have no eighth bit to lose.
    np.testing.assert_array_equal(kernel[1, :4], [100, 101, 102, 103])


def test_scanned_blocks_are_stacked(tmp_path):
  second = tensors('model.layers.1.')
  second = {n: x + 0.5 for n, x in second.items() if '.1.' in n}
  folder = write(tmp_path, dict(num_hidden_layers=2), **second)
  net, params = convert.load_lm(folder, scan=True)
  like = jax.eval_shape(net.init, jax.random.key(0))
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, like)
  _, each = convert.load_lm(folder)
  for i in range(2):
    one = jax.tree.map(lambda x, i=i: x[i], params['decoder']['block'])
    assert tree.equal(one, each['decoder'][f'block_{i}'])


def test_files_that_are_not_there(tmp_path):
  with pytest.raises(weights.WeightsError, match=r'no .*config\.json'):
    convert.load_lm(tmp_path)
  folder = write(tmp_path)
  whole = folder / 'model.safetensors'
  data = whole.read_bytes()
  whole.write_bytes(data[:-1])
  with pytest.raises(weights.WeightsError, match='truncated'):
    convert.load_lm(folder)
  whole.unlink()
  with pytest.raises(weights.WeightsError, match='no index of parts'):
    convert.load_lm(folder)
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps(dict(weight_map=dict(a='one.st', b='two.st'))))
  (folder / 'one.st').write_bytes(data)
  with pytest.raises(weights.WeightsError, match=r'not there: two\.st\.$'):
    convert.load_lm(folder)
  (folder / 'two.st').write_bytes(data)
  with pytest.raises(weights.WeightsError, match='in two files: model.embed'):
    convert.load_lm(folder)
  index.write_text('{')
  with pytest.raises(weights.WeightsError, match='is no JSON'):
    convert.load_lm(folder)
