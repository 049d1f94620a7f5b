"""SigLIP against transformers: checkpoints it writes, loaded by us."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from gen_rl.models import siglip
from gen_rl.models.files import released
from gen_rl.utils import tree

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
torch.set_num_threads(1)  # small products; other processes have the cores

V, L = 37, 9
TOWER = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2)
VISION = TOWER | dict(num_attention_heads=2, image_size=16, patch_size=4)
TEXT = TOWER | dict(
  num_attention_heads=4, vocab_size=V, max_position_embeddings=L,
  bos_token_id=1, eos_token_id=2,
)  # fmt: skip


def randomise(model, seed=0):
  """No parameter is as it was made, and activations stay of size one."""
  rng = np.random.default_rng(seed)
  with torch.no_grad():
    for name, x in sorted(model.named_parameters()):
      noise = torch.from_numpy(rng.normal(size=x.shape)).float()
      if name.endswith('weight') and x.ndim > 1 and 'embedding.w' not in name:
        x.copy_(noise / x[0].numel() ** 0.5)
      else:
        around = 'norm' in name and name.endswith('weight')
        x.copy_(float(around) + 0.3 * noise)
  return model.eval()


def made(kind):
  vision = transformers.SiglipVisionConfig(**VISION)
  text = transformers.SiglipTextConfig(**TEXT)
  if kind == 'both':
    config = transformers.SiglipConfig(
      vision_config=vision.to_dict(), text_config=text.to_dict()
    )
    model = transformers.SiglipModel(config)
  elif kind == 'vision':
    model = transformers.SiglipVisionModel(vision)
  elif kind == 'no head':
    vision.vision_use_head = False
    model = transformers.SiglipVisionModel(vision)
  else:
    text.hidden_act, text.projection_size = 'gelu', 20
    model = transformers.SiglipTextModel(text)
  return randomise(model)


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  """kind -> (their model, its folder, our net, our parameters)."""

  @functools.cache
  def load(kind):
    model = made(kind)
    folder = tmp_path_factory.mktemp('siglip')
    model.save_pretrained(folder)
    return model, folder, *siglip.load(folder)

  return load


def pixels(h=16, w=16):
  rng = np.random.default_rng(1)
  return rng.uniform(-1, 1, size=(3, h, w, 3)).astype(np.float32)


def tokens(length=L):
  rng = np.random.default_rng(2)
  return rng.integers(0, V, (3, length)).astype(np.int32)


def first(x):
  """[b h w c] -> a tensor [b c h w]."""
  return torch.from_numpy(np.asarray(x)).permute(0, 3, 1, 2).contiguous()


def error(found, want):
  found, want = np.asarray(found), np.asarray(want)
  assert found.shape == want.shape
  return np.abs(found - want).max() / np.abs(want).max()


@pytest.mark.parametrize('kind', ['both', 'vision', 'no head'])
@pytest.mark.parametrize('size', [(16, 16), (24, 12)])
def test_pictures(loaded, kind, size):
  model, _, net, params = loaded(kind)
  model = getattr(model, 'vision_model', model)
  x = pixels(*size)
  with torch.no_grad():
    out = model(first(x), interpolate_pos_encoding=True)
  found = jax.jit(net.image)(params, x)
  squares = out.last_hidden_state.reshape(3, size[0] // 4, size[1] // 4, -1)
  assert error(found.patches, squares) < 1e-5
  if kind == 'no head':
    assert found.pooled is None
  else:
    assert error(found.pooled, out.pooler_output) < 1e-5


@pytest.mark.parametrize('kind', ['both', 'text'])
@pytest.mark.parametrize('length', [L, 4])
def test_texts(loaded, kind, length):
  """Read at the last token, whatever it is."""
  model, _, net, params = loaded(kind)
  model = getattr(model, 'text_model', model)
  ids = tokens(length)
  with torch.no_grad():
    want = model(torch.from_numpy(ids)).pooler_output
  assert want.shape[-1] == (16 if kind == 'both' else 20)
  assert error(jax.jit(net.text)(params, ids), want) < 1e-5


def test_logits_and_gradients(loaded):
  """Of all pairs; in pixels, in both networks' weights and in the scale."""
  model, _, net, params = loaded('both')
  x, ids = pixels(), tokens()
  taken = first(x).requires_grad_()
  want = model(torch.from_numpy(ids), taken).logits_per_image
  weight = np.random.default_rng(3).normal(size=(3, 3)).astype(np.float32)
  model.zero_grad()
  (want * torch.from_numpy(weight)).sum().backward()

  def logits(params, x):
    image, text = net.image(params, x).pooled, net.text(params, ids)
    return siglip.logits(params, image[:, None], text[None])

  def loss(params, x):
    out = logits(params, x)
    return (out * weight).sum(), out

  (own, of_x), found = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
  assert error(found, want.detach()) < 1e-5
  assert error(of_x, taken.grad.permute(0, 2, 3, 1)) < 1e-4
  grads = {name: p.grad.numpy() for name, p in model.named_parameters()}
  ours = dict(released.tensors(own, siglip.NAMES))
  assert set(ours) == set(grads)
  for name in (
    'logit_scale',
    'logit_bias',
    'vision_model.head.attention.in_proj_weight',
    'vision_model.embeddings.patch_embedding.weight',
    'vision_model.embeddings.position_embedding.weight',
    'text_model.encoder.layers.0.self_attn.q_proj.weight',
    'text_model.embeddings.token_embedding.weight',
  ):
    assert error(ours[name], grads[name]) < 1e-4, name


@pytest.mark.parametrize('kind', ['both', 'vision', 'text'])
def test_files_come_back(loaded, kind, tmp_path):
  """Bit by bit, and theirs reads them."""
  model, folder, _, params = loaded(kind)
  names = siglip.NAMES if kind == 'both' else siglip.ALONE
  released.save(tmp_path, params, names, released.config(folder))
  want, found = (
    safetensors.numpy.load_file(f / 'model.safetensors')
    for f in (folder, tmp_path)
  )
  assert set(found) == set(want)
  for name, x in want.items():
    np.testing.assert_array_equal(found[name], x, name)
  again = type(model).from_pretrained(tmp_path).state_dict()
  for name, x in model.state_dict().items():
    np.testing.assert_array_equal(again[name], x, name)


def test_one_network_of_both(loaded):
  _, folder, net, params = loaded('both')
  for part in ('vision', 'text'):
    alone, own = siglip.load(folder, parts=(part,))
    assert list(own) == [f'{part}_model']
    assert tree.equal(own[f'{part}_model'], params[f'{part}_model'])
    assert (alone.image is None) == (part == 'text')
    assert (alone.text is None) == (part == 'vision')


def test_files_of_transformers_4(loaded, tmp_path):
  """One network's names begin with it there."""
  _, folder, _, params = loaded('vision')
  found = safetensors.numpy.load_file(folder / 'model.safetensors')
  old = {f'vision_model.{name}': x for name, x in found.items()}
  safetensors.numpy.save_file(old, tmp_path / 'model.safetensors')
  config = (folder / 'config.json').read_text()
  (tmp_path / 'config.json').write_text(config)
  assert tree.equal(siglip.load(tmp_path)[1], params)


def test_scanned_blocks(loaded):
  _, folder, net, params = loaded('both')
  scanned, stacked = siglip.load(folder, scan=True, remat='dots')
  leaf = stacked['text_model']['encoder']['layers']['mlp']['fc1']['kernel']
  assert leaf.shape == (2, 16, 24)

  def loss(net, params, x):
    pooled = net.image(params, x).pooled
    return siglip.logits(params, pooled, net.text(params, tokens())).sum()

  found, want = (
    jax.jit(jax.value_and_grad(functools.partial(loss, n), 1))(p, pixels())
    for n, p in ((scanned, stacked), (net, params))
  )
  assert error(found[0], want[0]) < 1e-6
  assert error(found[1], want[1]) < 1e-5


def test_bfloat16(loaded):
  _, folder, net, params = loaded('both')
  rough, cast = siglip.load(folder, 'bfloat16', dtype='bfloat16')
  assert {x.dtype for x in jax.tree.leaves(cast)} == {jnp.dtype('bfloat16')}
  found = jax.jit(rough.image)(cast, pixels()).pooled
  want = jax.jit(net.image)(params, pixels()).pooled
  assert found.dtype == jnp.float32
  assert 1e-4 < error(found, want) < 0.1


def test_configs_that_say_little():
  """As that of the released base model."""
  found = siglip.config(
    dict(
      model_type='siglip',
      text_config=dict(model_type='siglip_text_model'),
      vision_config=dict(model_type='siglip_vision_model'),
    )
  )
  net = siglip.siglip(**found)
  own = jax.eval_shape(net.init, jax.random.key(0))
  with torch.device('meta'):
    theirs = transformers.SiglipModel(transformers.SiglipConfig())
  places = released.places(own, siglip.NAMES)
  assert {name: place.shape for name, place in places.items()} == {
    name: tuple(p.shape) for name, p in theirs.named_parameters()
  }


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(model_type='clip'), "model_type='clip'"),
    (dict(hidden_act='relu'), 'relu'),
    (dict(num_channels=1), '1 channels'),
  ],
)
def test_what_is_not_computed_is_refused(loaded, change, message):
  _, folder, *_ = loaded('vision')
  config = json.loads((folder / 'config.json').read_text())
  with pytest.raises(ValueError, match=message):
    siglip.config(config | change)


def test_bad_input_is_said(loaded):
  _, folder, net, params = loaded('text')
  with pytest.raises(ValueError, match='12 tokens.*9'):
    net.text(params, tokens(12))
  with pytest.raises(ValueError, match='siglip_text_model.*not vision'):
    siglip.load(folder, parts=('vision',))
  with pytest.raises(ValueError, match='neither'):
    siglip.siglip(None, None)
