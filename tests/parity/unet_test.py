"""U-Nets against diffusers: checkpoints it writes, loaded by us."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import sharding
from gen_rl.diffusion import ddpm, process
from gen_rl.models import unet, unet_files
from gen_rl.models.files import released
from gen_rl.utils import tree

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')
torch.set_num_threads(1)  # small products; other processes have the cores

L, D = 5, 12  # words, and their features
SIZES = dict(
  sample_size=8, block_out_channels=(8, 16), layers_per_block=1,
  down_block_types=['CrossAttnDownBlock2D', 'DownBlock2D'],
  up_block_types=['UpBlock2D', 'CrossAttnUpBlock2D'],
  norm_num_groups=4, cross_attention_dim=D, attention_head_dim=4,
)  # fmt: skip
# As the configs of the released ones differ; "8" of Stable Diffusion 1.5 is a
# number of heads, not what its name says, and so is 4 here.
KINDS = {
  'sd15': dict(),
  'sd2': dict(
    attention_head_dim=[2, 4], use_linear_projection=True, layers_per_block=2,
    transformer_layers_per_block=[2, 1], upcast_attention=True,
  ),
  'lcm': dict(time_cond_proj_dim=16),
}  # fmt: skip
GUIDANCE = 8.5
TIMES = ddpm.flow_times()


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
    model = randomise(diffusers.UNet2DConditionModel(**SIZES | KINDS[kind]))
    folder = tmp_path_factory.mktemp('unet')
    model.save_pretrained(folder)
    return model, folder, *unet.load(folder, guidance=GUIDANCE)

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


def inputs(h=8, w=8):
  """x_i [b h w c], levels, words; levels need not be whole."""
  rng = np.random.default_rng(1)
  x, text = rng.normal(size=(3, h, w, 4)), rng.normal(size=(3, L, D))
  levels = np.array([999.0, 0.0, 500.25], np.float32)
  return x.astype(np.float32), levels, text.astype(np.float32)


def theirs(model, x, levels, text):
  """The noise that it predicts, [b c h w]."""
  width = model.config.time_cond_proj_dim
  scale = None
  if width:
    pipeline = diffusers.LatentConsistencyModelPipeline
    scale = pipeline.get_guidance_scale_embedding(
      None, torch.full((len(x),), GUIDANCE - 1), width
    )
  levels = torch.from_numpy(levels)
  return model(x, levels, text, timestep_cond=scale).sample


def ours(net, params, x_vp, levels, text):
  """The same of a velocity network: what noise does it say?"""
  s = jnp.interp(levels, jnp.arange(1000.0), jnp.asarray(TIMES, jnp.float32))
  norm = jnp.sqrt((1 - s) ** 2 + s**2)[:, None, None, None]
  v = net.apply(params, x_vp * norm, s, net.encode(params, dict(text=text)))
  return process.x1_from_velocity(x_vp * norm, v, s)


def test_noise(both):
  model, _, net, params = both
  x, levels, text = inputs()
  with torch.no_grad():
    want = last(theirs(model, first(x), levels, torch.from_numpy(text)))
  found = jax.jit(functools.partial(ours, net))(params, x, levels, text)
  assert net.shape == (8, 8, 4) and found.dtype == jnp.float32
  assert error(found, want) < 1e-5
  # All that is said matters.
  assert error(found[:1], found[1:2]) > 0.1


def test_sides_that_do_not_halve(loaded):
  model, _, net, params = loaded('sd15')
  x, levels, text = inputs(7, 5)
  with torch.no_grad():
    want = last(theirs(model, first(x), levels, torch.from_numpy(text)))
  found = jax.jit(functools.partial(ours, net))(params, x, levels, text)
  assert error(found, want) < 1e-5


def test_gradients(loaded):
  """By the latent, the text and weights; ours computes its blocks anew."""
  model, folder, _, _ = loaded('lcm')
  net, params = unet.load(folder, guidance=GUIDANCE, remat='full')
  x, levels, text = inputs(4, 4)
  kernels = [
    'time_embedding.cond_proj.weight',
    'down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight',
    'up_blocks.1.resnets.0.conv1.weight',
  ]
  weights = [dict(model.named_parameters())[name] for name in kernels]
  their_x = first(x).requires_grad_()
  their_text = torch.from_numpy(text).requires_grad_()
  value = theirs(model, their_x, levels, their_text).square().sum()
  want = torch.autograd.grad(value, [their_x, their_text, *weights])

  def value_of(params, x, text):
    return jnp.square(ours(net, params, x, levels, text)).sum()

  grads = jax.jit(jax.grad(value_of, (0, 1, 2)))(params, x, text)
  assert error(grads[1], last(want[0])) < 1e-4
  assert error(grads[2], want[1].numpy()) < 1e-4
  by_name = dict(released.tensors(grads[0], unet_files.NAMES))
  for name, w in zip(kernels, want[2:]):
    assert error(by_name[name], w.numpy()) < 1e-4


def test_saved_folders(both, tmp_path):
  model, _, net, params = both
  net.save(str(tmp_path), params)
  again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / 'unet')
  want, found = model.state_dict(), again.state_dict()
  assert want.keys() == found.keys()
  assert all(torch.equal(want[name], found[name]) for name in want)
  # The config says the same network.
  said = (unet_files.config(dict(x.config)) for x in (model, again))
  (image, first), (size, second) = (
    (x['image'], unet_files.sizes(**x)) for x in said
  )
  assert image == size and first == second


def test_every_parameter_has_axes(loaded):
  for kind in KINDS:
    net, params = loaded(kind)[2:]
    for name, x in tree.named(params).items():
      sharding.logical_axes(name, x.ndim, net.axes)


def test_bfloat16(loaded):
  _, folder, net, params = loaded('sd15')
  low, cast = unet.load(folder, 'bfloat16', dtype='bfloat16')
  assert {x.dtype for x in jax.tree.leaves(cast)} == {jnp.dtype('bfloat16')}
  x, levels, text = inputs()
  want = jax.jit(functools.partial(ours, net))(params, x, levels, text)
  found = jax.jit(functools.partial(ours, low))(cast, x, levels, text)
  assert found.dtype == jnp.float32
  assert 1e-4 < error(found, np.asarray(want)) < 0.1


def test_null_text():
  net = unet.unet(
    channels=(8, 8), transformers=(True, False), heads=2, groups=2
  )
  cond = dict(text=jnp.ones((1, 2, 3)), null_text=jnp.zeros((1, 2, 3)))
  assert not net.encode(None, net.null(cond)).any()
  with pytest.raises(ValueError, match='data.embed.negative'):
    net.null(dict(text=cond['text']))


def test_what_is_refused(loaded):
  _, folder, _, _ = loaded('sd15')
  said = released.config(folder)
  for option in (
    dict(class_embed_type='timestep'),
    dict(addition_embed_type='text_time'),
    dict(resnet_time_scale_shift='scale_shift'),
    dict(flip_sin_to_cos=False),
    dict(layers_per_block=[1, 2]),
    dict(cross_attention_dim=[12, 13]),
    dict(in_channels=9),
    dict(up_block_types=['CrossAttnUpBlock2D', 'UpBlock2D']),
    dict(down_block_types=['CrossAttnDownBlock2D', 'AttnDownBlock2D']),
    dict(attention_type='gated'),
    dict(encoder_hid_dim_type='image_proj'),
  ):
    with pytest.raises(ValueError, match='not computed'):
      unet_files.config(said | option)
  with pytest.raises(ValueError, match='center_input.*; new=1, an option'):
    unet_files.config(said | dict(center_input_sample=True, new=1))
  with pytest.raises(ValueError, match='cross_attention_dim is missing'):
    unet_files.config(
      {k: x for k, x in said.items() if k != 'cross_attention_dim'}
    )
  with pytest.raises(ValueError, match='2 levels of channels, 3 of heads'):
    unet.unet(channels=(8, 8), transformers=(True, True), heads=(1, 2, 3))
  with pytest.raises(ValueError, match='8 channels.*heads=3'):
    unet.unet(channels=(8, 8), transformers=(True, True), heads=3, groups=4)


def test_folders_of_pipelines(loaded, tmp_path):
  """A network that a config describes takes the weights of its own kind."""
  model, _, net, params = loaded('lcm')
  model.save_pretrained(tmp_path / 'unet')
  scheduler = diffusers.LCMScheduler()
  scheduler.save_pretrained(tmp_path / 'scheduler')
  said = dict(
    image=(16, 16, 4), channels=(8, 16), blocks=1, transformers=[True, False],
    heads=4, text=D, groups=4, guidance_width=16, boundary=10.0,
  )  # fmt: skip
  folder = str(tmp_path)
  assert tree.equal(unet.unet(**said).load(folder, 'float32'), params)
  kept = jax.tree.leaves(unet.unet(**said).load(folder, 'bfloat16'))
  assert {x.dtype for x in kept} == {jnp.dtype('bfloat16')}
  for change, words in (
    (dict(heads=2), r'heads=\(4, 4\) and not \(2, 2\)'),
    (dict(boundary=None), 'boundary=10.0 and not None'),
    (dict(beta_end=0.02), 'beta_end=0.012 and not 0.02'),
    (dict(image=(8, 8, 3)), 'latent=4 and not 3'),
  ):
    with pytest.raises(ValueError, match=words):
      unet.unet(**said | change).load(folder, 'float32')


def test_sizes_of_released_ones():
  """860 and 866 million; the numbers of tensors are those of the files."""
  sd15 = dict(
    block_out_channels=[320, 640, 1280, 1280], cross_attention_dim=768,
    down_block_types=['CrossAttnDownBlock2D'] * 3 + ['DownBlock2D'],
    up_block_types=['UpBlock2D'] + ['CrossAttnUpBlock2D'] * 3,
    layers_per_block=2, attention_head_dim=8, sample_size=64,
  )  # fmt: skip
  assert unet.unet(**unet_files.config(sd15)).shape == (64, 64, 4)
  sd21 = sd15 | dict(
    cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20],
    use_linear_projection=True,
  )  # fmt: skip
  for said, count in ((sd15, 859520964), (sd21, 865910724)):
    net = unet.unet(**unet_files.config(said))
    like = jax.eval_shape(net.init, jax.random.key(0))
    assert len(jax.tree.leaves(like)) == 686
    assert tree.size(like) == count
