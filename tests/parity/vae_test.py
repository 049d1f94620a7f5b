"""Autoencoders against diffusers: checkpoints it writes, loaded by us."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from gen_rl.models import vae
from gen_rl.models.files import released
from gen_rl.models.files.weights import WeightsError
from gen_rl.utils import tree

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')
torch.set_num_threads(1)  # small products; other processes have the cores

SIZES = dict(
  down_block_types=['DownEncoderBlock2D'] * 2,
  up_block_types=['UpDecoderBlock2D'] * 2, block_out_channels=(8, 16),
  layers_per_block=1, norm_num_groups=4, sample_size=16,
)  # fmt: skip
# As the configs of the released ones differ.
KINDS = {
  'sd': dict(scaling_factor=0.18215),
  'flux': dict(
    latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159,
    use_quant_conv=False, use_post_quant_conv=False,
  ),
  'no attention': dict(layers_per_block=2, mid_block_add_attention=False),
}  # fmt: skip


def randomise(model, seed=0):
  """No parameter is as it was made, and activations stay of size one."""
  rng = np.random.default_rng(seed)
  with torch.no_grad():
    for name, x in sorted(model.named_parameters()):
      noise = torch.from_numpy(rng.normal(size=x.shape)).float()
      if x.ndim > 1:
        x.copy_(noise / x[0].numel() ** 0.5)
      else:
        around = 'norm' in name and name.endswith('weight')
        x.copy_(float(around) + 0.3 * noise)
  return model.eval()


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  """kind -> (theirs, its folder, ours, our parameters)."""

  @functools.cache
  def load(kind):
    model = randomise(diffusers.AutoencoderKL(**SIZES | KINDS[kind]))
    folder = tmp_path_factory.mktemp('vae')
    model.save_pretrained(folder)
    return model, folder, *vae.load(folder)

  return load


@pytest.fixture(params=list(KINDS))
def both(request, loaded):
  return loaded(request.param)


def first(x):
  """[b h w c] -> a tensor [b c h w]."""
  return torch.from_numpy(np.asarray(x)).permute(0, 3, 1, 2).contiguous()


def last(x):
  return x.detach().permute(0, 2, 3, 1).numpy()


def error(found, want):
  assert found.shape == want.shape
  return np.abs(np.asarray(found) - want).max() / np.abs(want).max()


def pictures(h=16, w=12):
  return np.random.default_rng(1).random((2, h, w, 3), np.float32)


def latents(net, h=8, w=6):
  rng = np.random.default_rng(2)
  return rng.normal(size=(2, h, w, net.channels)).astype(np.float32)


def their_picture(model, y, decode='decode'):
  """What a pipeline does with its latents, before it clips."""
  shift = model.config.shift_factor or 0.0
  z = y / model.config.scaling_factor + shift
  return getattr(model, decode)(z).sample / 2 + 0.5


def test_encode(both):
  model, _, net, params = both
  x = pictures()
  with torch.no_grad():
    want = model.encode(2 * first(x) - 1).latent_dist
  found = jax.jit(net.encode)(params, x)
  assert error(found.mode(), last(want.mean)) < 1e-5
  assert error(found.logvar, last(want.logvar)) < 1e-5
  # The noise of rows does not depend on other rows.
  keys = jax.random.split(jax.random.key(0), 2)
  drawn = found.sample(keys)
  np.testing.assert_array_equal(
    drawn[1:], vae.Posterior(*(a[1:] for a in found)).sample(keys[1:])
  )
  noise = (drawn - found.mean) / last(want.std)
  assert 0.8 < np.std(noise) < 1.2 and not np.allclose(noise[0], noise[1])


def test_decode(both):
  model, _, net, params = both
  y = latents(net)
  with torch.no_grad():
    want = last(their_picture(model, first(y)))
  found = jax.jit(lambda p, y: net.decode(p, y, clip=False))(params, y)
  assert error(found, want) < 1e-5
  clipped = jax.jit(net.decode)(params, y)
  assert (want < 0).any() and (want > 1).any()
  np.testing.assert_allclose(clipped, np.clip(want, 0, 1), atol=1e-4)


def test_units(both):
  model, _, net, _ = both
  z = latents(net)
  shift = model.config.shift_factor or 0.0
  want = (z - shift) * model.config.scaling_factor
  np.testing.assert_allclose(net.scaled(z), want, rtol=1e-6)
  np.testing.assert_allclose(net.unscaled(net.scaled(z)), z, atol=1e-5)


def test_tiled_decode(loaded):
  """Tiles of 8 x 8, and of less at the ends; a small picture is one tile."""
  model, _, net, params = loaded('sd')
  decode = jax.jit(lambda p, y: net.tiled_decode(p, y, clip=False))
  y = latents(net, 14, 19)
  with torch.no_grad():
    whole = last(their_picture(model, first(y)))
    model.enable_tiling()
    want = last(their_picture(model, first(y)))
    model.disable_tiling()
  found = decode(params, y)
  assert found.shape == (2, 28, 38, 3)
  assert error(found, want) < 1e-5 and error(found, whole) > 0.01
  y = latents(net)
  want = jax.jit(lambda p, y: net.decode(p, y, clip=False))(params, y)
  np.testing.assert_array_equal(decode(params, y), want)


def test_gradients(loaded):
  """Of a picture by its latent, and of a latent by its picture, and weights.

  Ours is clipped, which stops no gradient, and computes its blocks anew.
  """
  model, folder, _, _ = loaded('flux')
  net, params = vae.load(folder, remat='full')
  x, y = pictures(8, 8), latents(net, 4, 4)
  to = pictures(8, 8)[::-1] - 0.5
  kernels = [
    'encoder.down_blocks.1.resnets.0.conv_shortcut.weight',
    'decoder.mid_block.attentions.0.to_q.weight',
  ]
  weights = [dict(model.named_parameters())[name] for name in kernels]
  their_x = first(x).requires_grad_()
  their_y = first(y).requires_grad_()
  moments = model.encode(2 * their_x - 1).latent_dist
  picture = their_picture(model, their_y)
  assert (picture < 0).any() and (picture > 1).any()
  value = (moments.mean * moments.std).sum()
  value = value + (picture * first(to)).sum()
  want = torch.autograd.grad(value, [their_x, their_y, *weights])

  def ours(params, x, y):
    z = net.encode(params, x)
    picture = net.decode(params, y)
    return (z.mean * jnp.exp(z.logvar / 2)).sum() + (picture * to).sum()

  grads = jax.jit(jax.grad(ours, (0, 1, 2)))(params, x, y)
  assert error(grads[1], last(want[0])) < 1e-4
  assert error(grads[2], last(want[1])) < 1e-4
  by_name = dict(released.tensors(grads[0], vae.NAMES))
  for name, w in zip(kernels, want[2:]):
    assert error(by_name[name], w.numpy()) < 1e-4


def test_saved_folders(both, tmp_path):
  model, folder, _, params = both
  released.save(tmp_path, params, vae.NAMES, released.config(folder))
  again = diffusers.AutoencoderKL.from_pretrained(tmp_path)
  want, found = model.state_dict(), again.state_dict()
  assert want.keys() == found.keys()
  assert all(torch.equal(want[name], found[name]) for name in want)


@pytest.mark.parametrize('pixel', [False, True])
def test_attention_of_old_files(loaded, tmp_path, pixel):
  """The first checkpoints: other names, and products or convolutions."""
  _, folder, _, params = loaded('sd')
  name = 'diffusion_pytorch_model.safetensors'
  tensors = safetensors.numpy.load_file(folder / name)
  new = ('to_q', 'to_k', 'to_v', 'to_out.0')
  old = ('query', 'key', 'value', 'proj_attn')
  renamed = {}
  for key, x in tensors.items():
    for a, b in zip(new, old):
      if f'.{a}.' in key:
        key = key.replace(f'.{a}.', f'.{b}.')
        x = x[..., None, None] if pixel and x.ndim == 2 else x
    renamed[key] = x
  assert len(renamed.keys() - tensors.keys()) == 16
  safetensors.numpy.save_file(renamed, tmp_path / name)
  (tmp_path / 'config.json').write_bytes((folder / 'config.json').read_bytes())
  _, found = vae.load(tmp_path)
  assert tree.equal(found, params)


def test_bfloat16(loaded):
  _, folder, net, params = loaded('sd')
  y = latents(net)
  want = jax.jit(lambda p, y: net.decode(p, y, clip=False))(params, y)
  low, cast = vae.load(folder, 'bfloat16', dtype='bfloat16')
  assert {x.dtype for x in jax.tree.leaves(cast)} == {jnp.dtype('bfloat16')}
  found = jax.jit(lambda p, y: low.decode(p, y, clip=False))(cast, y)
  assert found.dtype == jnp.float32
  assert 1e-4 < error(found, np.asarray(want)) < 0.1


def test_what_is_refused(loaded, tmp_path):
  _, folder, _, _ = loaded('sd')
  said = released.config(folder)
  with pytest.raises(ValueError, match='act_fn=.mish.*; new=1, an option'):
    vae.config(said | dict(act_fn='mish', new=1))
  blocks = ['DownEncoderBlock2D', 'AttnDownEncoderBlock2D'] * 2
  with pytest.raises(ValueError, match='AttnDownEncoderBlock2D'):
    vae.config(said | dict(down_block_types=blocks))
  with pytest.raises(ValueError, match='latents_mean'):
    vae.config(said | dict(latents_mean=[0.0] * 4))
  with pytest.raises(ValueError, match='block_out_channels is missing'):
    vae.config({})
  with pytest.raises(ValueError, match=r'\[16, 24\].*groups=32'):
    vae.vae((16, 24, 64))
  (tmp_path / 'config.json').write_text(
    json.dumps(said | dict(latent_channels=3))
  )
  name = 'diffusion_pytorch_model.safetensors'
  (tmp_path / name).write_bytes((folder / name).read_bytes())
  with pytest.raises(WeightsError, match='post_quant_conv.weight'):
    vae.load(tmp_path)
