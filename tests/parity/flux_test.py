"""The transformer of FLUX.1 and its pipeline against diffusers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import sharding
from gen_rl.build import ConfigError
from gen_rl.diffusion import schedules
from gen_rl.models import flux
from gen_rl.models.files import released
from gen_rl.models.parts import lora
from gen_rl.policies import ode
from gen_rl.types import Rows
from gen_rl.utils import rng as rng_lib
from gen_rl.utils import tree

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')
torch.set_num_threads(1)

SIZES = dict(
  patch_size=1, in_channels=16, num_layers=2, num_single_layers=2,
  attention_head_dim=16, num_attention_heads=2, joint_attention_dim=20,
  pooled_projection_dim=12, axes_dims_rope=(4, 6, 6),
)  # fmt: skip
KINDS = dict(dev=True, schnell=False)
SHAPE = 12, 8, 4


@pytest.fixture(scope='module')
def folder_of(tmp_path_factory, randomize):
  """kind -> (their model, the folder of a pipeline with it)."""

  @functools.cache
  def make(kind):
    model = randomize(
      diffusers.FluxTransformer2DModel(**SIZES, guidance_embeds=KINDS[kind])
    )
    folder = tmp_path_factory.mktemp('flux')
    model.save_pretrained(folder / 'transformer')
    return model, folder

  return make


def net_of(folder, kind, shape=SHAPE, **options):
  said = flux.config(released.config(folder / 'transformer'))
  said.pop('channels')
  guidance = 3.5 if said.pop('guided') else None
  net = flux.flux(image=shape, guidance=guidance, **said, **options)
  return net, net.load(str(folder), 'float32')


def inputs(b=2, l=5):
  rng = np.random.default_rng(1)
  x, text, pooled = (
    rng.normal(size=s).astype(np.float32)
    for s in ((b, *SHAPE), (b, l, 20), (b, 12))
  )
  return x, np.array([0.9, 0.2], np.float32)[:b], text, pooled


def theirs(model, x, t, text, pooled, guided):
  """With the packing of the pipeline."""
  pipeline = diffusers.FluxPipeline
  b, h, w, c = x.shape
  tokens = pipeline._pack_latents(x.permute(0, 3, 1, 2), b, c, h, w)
  ids = pipeline._prepare_latent_image_ids(b, h // 2, w // 2, 'cpu', x.dtype)
  out = model(
    hidden_states=tokens, timestep=t, encoder_hidden_states=text,
    pooled_projections=pooled, img_ids=ids,
    txt_ids=torch.zeros(text.shape[1], 3),
    guidance=torch.full((b,), 3.5) if guided else None,
  ).sample  # fmt: skip
  out = pipeline._unpack_latents(out, 8 * h, 8 * w, 8)
  return out.permute(0, 2, 3, 1)


def ours(net, params, x, t, text, pooled):
  encoded = net.encode(params, dict(text=text, pooled=pooled))
  return net.apply(params, x, t, encoded)


def far(found, want):
  want = np.asarray(want)
  assert found.shape == want.shape and np.abs(want).max() > 1e-3
  return np.abs(np.asarray(found) - want).max() / np.abs(want).max()


@pytest.mark.parametrize('scan', [False, True], ids=['blocks', 'scanned'])
@pytest.mark.parametrize('kind', KINDS)
def test_velocity_and_gradients(folder_of, kind, scan):
  model, folder = folder_of(kind)
  net, params = net_of(folder, kind, scan=scan)
  args = inputs()
  tensors = [torch.from_numpy(a) for a in args]
  tensors[0].requires_grad_()
  weight = model.single_transformer_blocks[1].attn.to_k.weight
  weight.grad = None
  want = theirs(model, *tensors, KINDS[kind])
  (want**2).sum().backward()

  def loss(params, x):
    v = ours(net, params, x, *args[1:])
    return jnp.sum(v**2), v

  (_, v), (grads, dx) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
    params, args[0]
  )
  assert far(v, want.detach()) < 1e-5
  assert far(dx, tensors[0].grad) < 1e-4
  if scan:
    kernel = grads['single_transformer_blocks']['attn']['to_k']['kernel'][1]
  else:
    kernel = grads['single_transformer_blocks_1']['attn']['to_k']['kernel']
  assert far(kernel.T, weight.grad) < 1e-4
  for name, x in tree.named(params).items():
    sharding.logical_axes(name, x.ndim, net.axes)


@pytest.mark.parametrize('scan', [False, True], ids=['blocks', 'scanned'])
def test_back_to_diffusers(folder_of, tmp_path, scan):
  model, folder = folder_of('dev')
  net, params = net_of(folder, 'dev', scan=scan)
  net.save(str(tmp_path), params)
  again = diffusers.FluxTransformer2DModel.from_pretrained(
    tmp_path / 'transformer'
  )
  net.load(str(tmp_path), 'float32')  # its config says the same network
  want = model.state_dict()
  assert set(again.state_dict()) == set(want)
  for name, x in again.state_dict().items():
    assert torch.equal(x, want[name]), name


def test_the_adapters_of_flow_grpo(folder_of):
  pattern = (
    r'/(attn/(add_[qkv]_proj|to_add_out|to_[qkv]|to_out_0)'
    r'|ff(_context)?/net_(0/proj|2))$'
  )
  _, folder = folder_of('dev')
  args = inputs()
  for scan in False, True:
    net, params = net_of(folder, 'dev', scan=scan)
    adapted = lora.add(params, pattern, 2, 4.0, jax.random.key(0))
    stacks = [
      x.shape[0] if x.ndim == 3 else 1
      for name, x in tree.named(adapted).items()
      if name.endswith('lora_a')
    ]
    assert sum(stacks) == 2 * (8 + 4) + 2 * 3
    run = jax.jit(lambda params, net=net: ours(net, params, *args))
    np.testing.assert_array_equal(run(adapted), run(params))


@pytest.mark.parametrize('side', [16, 64, 128])
def test_the_grid_of_times(side):
  scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
    use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15,
    base_image_seq_len=256, max_image_seq_len=4096,
  )  # fmt: skip
  tokens = (side // 2) ** 2
  mu = 0.5 + (1.15 - 0.5) / (4096 - 256) * (tokens - 256)
  scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 10, 10), mu=mu)
  want = scheduler.sigmas.numpy()
  np.testing.assert_allclose(
    schedules.dynamic_shift(10, tokens), want, atol=1e-6
  )
  shift = float(schedules.flux_shift(tokens))
  np.testing.assert_allclose(schedules.linear(10, shift), want, atol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_the_pipeline(folder_of, kind):
  """Ten steps from the same latents, through our sampler."""
  model, folder = folder_of(kind)
  shape = 16, 16, 4
  net, params = net_of(folder, kind, shape, scan=True)
  b = 2
  keys = jax.random.split(jax.random.key(0), b)
  _, _, text, pooled = inputs(b)
  rows = Rows(
    dict(text=jnp.asarray(text), pooled=jnp.asarray(pooled)), {},
    jnp.arange(b), keys, keys, jax.random.key(0),
  )  # fmt: skip
  tokens = 64
  sampler = ode.sampler(net, 10, float(schedules.flux_shift(tokens)))
  found = jax.jit(sampler)(params, rows)

  scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
    use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15,
    base_image_seq_len=256, max_image_seq_len=4096,
  )  # fmt: skip
  vae = diffusers.AutoencoderKL(
    down_block_types=['DownEncoderBlock2D'] * 4,
    up_block_types=['UpDecoderBlock2D'] * 4, block_out_channels=(8,) * 4,
    latent_channels=4, norm_num_groups=4,
  )  # fmt: skip
  pipeline = diffusers.FluxPipeline(
    scheduler, vae, None, None, None, None, model
  )
  pipeline.set_progress_bar_config(disable=True)
  noise = rng_lib.normal(rng_lib.stream_keys(keys, 'init'), shape)
  latents = torch.from_numpy(np.array(noise)).permute(0, 3, 1, 2)
  with torch.no_grad():
    packed = pipeline(
      prompt_embeds=torch.from_numpy(text),
      pooled_prompt_embeds=torch.from_numpy(pooled), height=128, width=128,
      num_inference_steps=10, guidance_scale=3.5, output_type='latent',
      latents=pipeline._pack_latents(latents, b, 4, 16, 16),
    ).images  # fmt: skip
  want = pipeline._unpack_latents(packed, 128, 128, 8).permute(0, 2, 3, 1)
  assert far(found, want) < 1e-4


def test_what_cannot_be_loaded(folder_of):
  _, folder = folder_of('schnell')
  said = released.config(folder / 'transformer')
  keys = flux.config(said)
  del keys['channels'], keys['guided']
  other = flux.flux(image=SHAPE, **keys | dict(single=3))
  with pytest.raises(ConfigError, match='single=2 and not 3, guided=False'):
    other.load(str(folder), 'float32')
  with pytest.raises(ValueError, match='patch_size=2, where it is 1'):
    flux.config(said | dict(patch_size=2))
  with pytest.raises(ValueError, match='three even numbers whose sum is'):
    flux.flux(turns=(16, 56, 54))
  with pytest.raises(ValueError, match='squares of 2x2'):
    flux.flux(image=(63, 64, 16))
