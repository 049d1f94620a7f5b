"""DINOv2 against transformers: checkpoints it writes, loaded by us."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from gen_rl.models import dinov2
from gen_rl.models.files import released
from gen_rl.models.files.weights import WeightsError
from gen_rl.models.parts import vit
from gen_rl.utils import tree

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
torch.set_num_threads(1)  # small products; other processes have the cores

SIZES = dict(
  hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28,
  patch_size=7,
)  # fmt: skip
KINDS = {
  'plain': ('Dinov2', {}),
  'swiglu': ('Dinov2', dict(use_swiglu_ffn=True, layer_norm_eps=1e-5)),
  'odd': (
    'Dinov2',
    dict(
      qkv_bias=False, use_mask_token=False, mlp_ratio=3,
      hidden_act='gelu_pytorch_tanh',
    ),
  ),
  'registers': ('Dinov2WithRegisters', dict(num_register_tokens=3)),
}  # fmt: skip
# Height and width: those of the table; larger and smaller.
PIXELS = (28, 28), (49, 14)


def randomise(model, seed=0):
  """No parameter is as it was made, and activations stay of size one."""
  rng = np.random.default_rng(seed)
  with torch.no_grad():
    for name, x in sorted(model.named_parameters()):
      noise = torch.from_numpy(rng.normal(size=x.shape)).float()
      around = float('norm' in name or 'lambda' in name)
      if name.endswith('weight') and x.ndim > 1:
        x.copy_(noise / x[0].numel() ** 0.5)
      else:
        x.copy_(around * (not name.endswith('bias')) + 0.3 * noise)
  return model.eval()


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  """kind -> (their model, its folder, our net, our parameters)."""

  @functools.cache
  def load(kind):
    family, options = KINDS[kind]
    config = getattr(transformers, f'{family}Config')(**SIZES | options)
    model = randomise(getattr(transformers, f'{family}Model')(config))
    folder = tmp_path_factory.mktemp('dinov2')
    model.save_pretrained(folder)
    return model, folder, *dinov2.load(folder)

  return load


@pytest.fixture(params=list(KINDS))
def both(request, loaded):
  return loaded(request.param)


def pixels(h=28, w=28):
  rng = np.random.default_rng(1)
  return rng.normal(size=(2, h, w, 3)).astype(np.float32)


def first(x):
  """[b h w c] -> a tensor [b c h w]."""
  return torch.from_numpy(np.asarray(x)).permute(0, 3, 1, 2).contiguous()


def error(found, want):
  found, want = np.asarray(found), np.asarray(want)
  assert found.shape == want.shape
  return np.abs(found - want).max() / np.abs(want).max()


@pytest.mark.parametrize('size', PIXELS)
def test_features(both, size):
  model, _, net, params = both
  x = pixels(*size)
  with torch.no_grad():
    out = model(first(x))
  registers = getattr(model.config, 'num_register_tokens', 0)
  squares = out.last_hidden_state[:, 1 + registers :]
  found = jax.jit(net.apply)(params, x)
  assert error(found.pooled, out.pooler_output) < 1e-5
  h, w = size[0] // 7, size[1] // 7
  assert error(found.patches, squares.reshape(2, h, w, -1)) < 1e-5


def test_gradients(both):
  """Of all outputs, in the pixels and in a weight of the first block."""
  model, _, net, params = both
  x = pixels(21, 35)
  taken = first(x).requires_grad_()
  out = model(taken)
  registers = getattr(model.config, 'num_register_tokens', 0)
  rng = np.random.default_rng(2)
  shape = out.last_hidden_state[:, registers:].shape
  weight = rng.normal(size=shape).astype(np.float32)
  kept = [0, *range(1 + registers, out.last_hidden_state.shape[1])]
  (out.last_hidden_state[:, kept] * torch.from_numpy(weight)).sum().backward()

  def loss(params, x):
    pooled, patches = net.apply(params, x)
    patches = patches.reshape(len(x), -1, patches.shape[-1])
    return (jnp.concatenate([pooled[:, None], patches], 1) * weight).sum()

  own, of_x = jax.jit(jax.grad(loss, (0, 1)))(params, x)
  assert error(of_x, taken.grad.permute(0, 2, 3, 1)) < 1e-4
  theirs = {
    'encoder.layer.0.attention.q_proj.weight': ('attention', 'q_proj'),
    'encoder.layer.0.attention.o_proj.weight': ('attention', 'out_proj'),
  }
  named = dict(model.named_parameters())
  for name, (part, leaf) in theirs.items():
    found = own['encoder']['layer_0'][part][leaf]['kernel']
    assert error(found.T, named[name].grad) < 1e-4
  table = named['embeddings.position_embeddings'].grad
  assert error(own['embeddings']['position_embeddings'], table) < 1e-4


def test_files_come_back(both, tmp_path):
  """Bit by bit, and theirs reads them."""
  model, folder, _, params = both
  released.save(tmp_path, params, dinov2.NAMES, released.config(folder))
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


def test_scanned_blocks(loaded, tmp_path):
  _, folder, net, params = loaded('swiglu')
  scanned, stacked = dinov2.load(folder, scan=True, remat='full')
  leaf = stacked['encoder']['layer']['norm1']['scale']
  assert leaf.shape == (2, 16)

  def loss(net, params, x):
    patches = net.apply(params, x).patches
    return jnp.square(patches[..., 0]).sum(), patches

  found, want = (
    jax.jit(jax.grad(functools.partial(loss, net), 1, has_aux=True))(
      p, pixels()
    )
    for net, p in ((scanned, stacked), (net, params))
  )
  assert error(found[1], want[1]) < 1e-6
  assert error(found[0], want[0]) < 1e-5
  released.save(tmp_path, stacked, dinov2.NAMES, released.config(folder))
  assert tree.equal(dinov2.load(tmp_path)[1], params)


def test_bfloat16(loaded):
  _, folder, net, params = loaded('plain')
  rough, cast = dinov2.load(folder, 'bfloat16', dtype='bfloat16')
  assert {x.dtype for x in jax.tree.leaves(cast)} == {jnp.dtype('bfloat16')}
  want = jax.jit(net.apply)(params, pixels()).patches
  found = jax.jit(rough.apply)(cast, pixels()).patches
  assert found.dtype == jnp.float32
  assert 1e-4 < error(found, want) < 0.1


@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize('old, new', [(4, 4), (4, 7), (9, 4), (5, 1), (37, 16)])
def test_resampling(old, new, antialias):
  """A table along one axis, against torch's bicubic resampling."""
  x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, old, old)))
  want = torch.nn.functional.interpolate(
    x, (new, new), mode='bicubic', align_corners=False, antialias=antialias
  )
  table = jnp.asarray(x[0, 0, :, :, None], jnp.float32)
  found = vit.resized(table, (new, new), antialias)
  assert error(found[..., 0], want[0, 0]) < 1e-6
  weights = vit.resampling(old, new, antialias)
  np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(model_type='vit'), "model_type='vit'"),
    (dict(hidden_act='relu'), 'relu'),
    (dict(num_channels=4), '4 channels'),
    (dict(hidden_size=None), 'width=None'),
    (dict(patch_size=[7, 14]), r'patch=\[7, 14\]'),
    (dict(head_dim=4), 'head_dim=4'),
  ],
)
def test_what_is_not_computed_is_refused(loaded, change, message):
  _, folder, *_ = loaded('plain')
  config = json.loads((folder / 'config.json').read_text())
  with pytest.raises(ValueError, match=message):
    dinov2.config(config | change)


def test_tensors_of_another_model(loaded, tmp_path):
  _, folder, *_ = loaded('plain')
  config = json.loads((folder / 'config.json').read_text())
  config['use_swiglu_ffn'] = True
  (tmp_path / 'config.json').write_text(json.dumps(config))
  data = (folder / 'model.safetensors').read_bytes()
  (tmp_path / 'model.safetensors').write_bytes(data)
  with pytest.raises(WeightsError, match='weights_in.*unexpected.*fc1'):
    dinov2.load(tmp_path)


def test_pictures_that_are_no_whole_squares(loaded):
  _, _, net, params = loaded('plain')
  with pytest.raises(ValueError, match='28x30.*7x7'):
    net.apply(params, pixels(28, 30))
