"""The video transformer of Wan 2.1 and its pipeline against diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import sharding
from gen_rl.build import ConfigError
from gen_rl.models import wan
from gen_rl.models.files import released
from gen_rl.policies import ode
from gen_rl.types import Rows
from gen_rl.utils import rng as rng_lib
from gen_rl.utils import tree

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')
torch.set_num_threads(1)

SIZES = dict(
  num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
  text_dim=20, freq_dim=256, ffn_dim=24, num_layers=2,
)  # fmt: skip
PATCHES = dict(frames=(1, 2, 2), pairs=(2, 4, 2))
SHAPE = 4, 8, 6, 4


@pytest.fixture(scope='module')
def saved(tmp_path_factory, randomize):
  """Patch -> (their model, the folder of a pipeline with it)."""
  out = {}
  for name, patch in PATCHES.items():
    model = randomize(
      diffusers.WanTransformer3DModel(patch_size=patch, **SIZES)
    )
    folder = tmp_path_factory.mktemp('wan')
    model.save_pretrained(folder / 'transformer')
    out[name] = model, folder
  return out


def net_of(folder, **options):
  said = wan.config(released.config(folder / 'transformer'))
  said.pop('channels')
  net = wan.wan(video=SHAPE, **said, **options)
  return net, net.load(str(folder), 'float32')


def inputs(b=2, l=5):
  rng = np.random.default_rng(1)
  x, text = (
    rng.normal(size=s).astype(np.float32) for s in ((b, *SHAPE), (b, l, 20))
  )
  return x, np.array([0.9, 0.2], np.float32)[:b], text


def theirs(model, x, t, text):
  out = model(x.permute(0, 4, 1, 2, 3), 1000 * t, text, return_dict=False)[0]
  return out.permute(0, 2, 3, 4, 1)


def ours(net, params, x, t, text):
  return net.apply(params, x, t, net.encode(params, dict(text=text)))


def far(found, want):
  want = np.asarray(want)
  assert found.shape == want.shape and np.abs(want).max() > 1e-3
  return np.abs(np.asarray(found) - want).max() / np.abs(want).max()


@pytest.mark.parametrize('scan', [False, True], ids=['blocks', 'scanned'])
@pytest.mark.parametrize('patch', PATCHES)
def test_velocity_and_gradients(saved, patch, scan):
  model, folder = saved[patch]
  net, params = net_of(folder, scan=scan)
  args = inputs()
  tensors = [torch.from_numpy(a) for a in args]
  for i in 0, 2:
    tensors[i].requires_grad_()
  weight = model.blocks[1].attn2.to_k.weight
  table = model.blocks[1].scale_shift_table
  weight.grad = table.grad = None
  want = theirs(model, *tensors)
  (want**2).sum().backward()

  def loss(params, x, text):
    v = ours(net, params, x, args[1], text)
    return jnp.sum(v**2), v

  grad = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
  (_, v), (grads, dx, dtext) = grad(params, args[0], args[2])
  assert far(v, want.detach()) < 1e-5
  assert far(dx, tensors[0].grad) < 1e-4
  assert far(dtext, tensors[2].grad) < 1e-4
  at = (lambda x: x[1]) if scan else lambda x: x
  block = grads['blocks' if scan else 'blocks_1']
  assert far(at(block['attn2']['to_k']['kernel']).T, weight.grad) < 1e-4
  assert far(at(block['scale_shift_table']), table.grad) < 1e-4
  for name, x in tree.named(params).items():
    sharding.logical_axes(name, x.ndim, net.axes)


@pytest.mark.parametrize('scan', [False, True], ids=['blocks', 'scanned'])
def test_back_to_diffusers(saved, tmp_path, scan):
  model, folder = saved['pairs']
  net, params = net_of(folder, scan=scan)
  net.save(str(tmp_path), params)
  again = diffusers.WanTransformer3DModel.from_pretrained(
    tmp_path / 'transformer'
  )
  net.load(str(tmp_path), 'float32')  # its config says the same network
  want = model.state_dict()
  assert set(again.state_dict()) == set(want)
  for name, x in again.state_dict().items():
    assert torch.equal(x, want[name]), name


def test_the_pipeline(saved):
  """Ten steps with guidance from the same latents, through our sampler."""
  model, folder = saved['frames']
  net, params = net_of(folder, scan=True)
  b = 2
  keys = jax.random.split(jax.random.key(0), b)
  *_, text = inputs(b)
  none = inputs(1)[2][:, ::-1].repeat(b, 0)
  rows = Rows(
    dict(text=jnp.asarray(text), null_text=jnp.asarray(none)), {},
    jnp.arange(b), keys, keys, jax.random.key(0),
  )  # fmt: skip
  sampler = ode.sampler(net, 10, 3.0, 5.0, grid=dict(name='sd3'))
  found = jax.jit(sampler)(params, rows)

  pipeline = diffusers.WanPipeline(
    tokenizer=None, text_encoder=None, vae=None, transformer=model,
    scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
  )  # fmt: skip
  pipeline.set_progress_bar_config(disable=True)
  noise = rng_lib.normal(rng_lib.stream_keys(keys, 'init'), SHAPE)
  latents = torch.from_numpy(np.array(noise)).permute(0, 4, 1, 2, 3)
  with torch.no_grad():
    want = pipeline(
      prompt_embeds=torch.from_numpy(text),
      negative_prompt_embeds=torch.from_numpy(none.copy()), latents=latents,
      height=64, width=48, num_frames=13, num_inference_steps=10,
      guidance_scale=5.0, output_type='latent',
    ).frames  # fmt: skip
  assert far(found, want.permute(0, 2, 3, 4, 1)) < 1e-4


def test_what_cannot_be_loaded(saved):
  _, folder = saved['frames']
  said = released.config(folder / 'transformer')
  keys = wan.config(said)
  del keys['channels']
  other = wan.wan(video=SHAPE, **keys | dict(layers=3))
  with pytest.raises(ConfigError, match='layers=2 and not 3'):
    other.load(str(folder), 'float32')
  # Video from a picture: another input, another attention.
  with pytest.raises(ValueError, match='image_dim=1280, where it is None'):
    wan.config(said | dict(image_dim=1280, added_kv_proj_dim=5120))
  with pytest.raises(ValueError, match='does not divide into tokens'):
    wan.wan(video=(3, 64, 63, 16))
  with pytest.raises(ValueError, match='frames, height, width and channels'):
    wan.wan(video=(64, 64, 16))
  with pytest.raises(ValueError, match='turned in pairs'):
    wan.wan(head_dim=15)
