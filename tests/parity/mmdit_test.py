"""The transformer of Stable Diffusion 3 against diffusers, and its files."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import sd3_flow_grpo
from gen_rl import build, models
from gen_rl.build import ConfigError
from gen_rl.models import mmdit, mmdit_files
from gen_rl.models.files import released
from gen_rl.models.files.weights import WeightsError
from gen_rl.models.parts import layers, lora
from gen_rl.utils import tree

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')
torch.set_num_threads(1)

SIZES = dict(
  sample_size=16, patch_size=2, in_channels=16, num_layers=4,
  attention_head_dim=8, num_attention_heads=3, joint_attention_dim=20,
  caption_projection_dim=24, pooled_projection_dim=12, out_channels=16,
  pos_embed_max_size=12, dual_attention_layers=(), qk_norm=None,
)  # fmt: skip
KINDS = {
  'sd3': {},
  'sd3.5 large': dict(qk_norm='rms_norm'),
  'sd3.5 medium': dict(qk_norm='rms_norm', dual_attention_layers=(0, 1)),
}
SHAPE = 12, 8, 16  # not square, and not the size that positions come from


def model_of(kind):
  """Theirs with numbers of numpy in every tensor."""
  model = diffusers.SD3Transformer2DModel(**SIZES | KINDS[kind]).eval()
  rng = np.random.default_rng(0)
  with torch.no_grad():
    for name, x in sorted(model.named_parameters()):
      noise = torch.from_numpy(rng.normal(size=x.shape)).float()
      fan = np.prod(x.shape[1:]) if x.ndim > 1 else 25
      x.copy_(noise / np.sqrt(fan) + (1 if '.norm_' in name else 0))
  return model


@pytest.fixture(scope='module')
def folder_of(tmp_path_factory):
  """kind -> (their model, the folder of a pipeline with it)."""

  @functools.cache
  def make(kind):
    model = model_of(kind)
    folder = tmp_path_factory.mktemp('sd3')
    model.save_pretrained(folder / 'transformer')
    return model, folder

  return make


def net_of(folder, **options):
  said = mmdit_files.config(released.config(folder / 'transformer'))
  said.pop('channels')
  net = mmdit.mmdit(image=SHAPE, **said, **options)
  return net, net.load(str(folder), 'float32')


def inputs(b=2, l=5):
  rng = np.random.default_rng(1)
  x, text, pooled = (
    rng.normal(size=s).astype(np.float32)
    for s in ((b, *SHAPE), (b, l, 20), (b, 12))
  )
  return x, np.array([0.9, 0.2], np.float32)[:b], text, pooled


def theirs(model, x, t, text, pooled):
  return model(
    hidden_states=x.permute(0, 3, 1, 2), timestep=1000 * t,
    encoder_hidden_states=text, pooled_projections=pooled,
  ).sample.permute(0, 2, 3, 1)  # fmt: skip


def ours(net, params, x, t, text, pooled):
  encoded = net.encode(params, dict(text=text, pooled=pooled))
  return net.apply(params, x, t, encoded)


@pytest.fixture(scope='module')
def gradients_of(folder_of):
  """(kind, options) -> (v, gradients of sum v^2: parameters, latents)."""

  @functools.cache
  def make(kind, **options):
    net, params = net_of(folder_of(kind)[1], **options)
    x, *args = inputs()

    def loss(params, x):
      v = ours(net, params, x, *args)
      return jnp.sum(v**2), v

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, v), grads = run(params, x)
    return v, *grads

  return make


def far(found, want):
  want = np.asarray(want)
  assert found.shape == want.shape and np.abs(want).max() > 1e-3
  return np.abs(np.asarray(found) - want).max() / np.abs(want).max()


# What config.json of the released transformers says.
PUBLISHED = dict(
  sample_size=128, patch_size=2, in_channels=16, out_channels=16,
  attention_head_dim=64, joint_attention_dim=4096, pooled_projection_dim=2048,
)  # fmt: skip
RELEASED = {
  '': dict(
    num_layers=24, num_attention_heads=24, caption_projection_dim=1536,
    pos_embed_max_size=384, qk_norm='rms_norm',
    dual_attention_layers=tuple(range(13)),
  ),
  'sd3': dict(
    num_layers=24, num_attention_heads=24, caption_projection_dim=1536,
    pos_embed_max_size=192,
  ),
  'large': dict(
    num_layers=38, num_attention_heads=38, caption_projection_dim=2432,
    pos_embed_max_size=192, qk_norm='rms_norm', dual_attention_layers=(),
  ),
}  # fmt: skip


@pytest.mark.parametrize('variant', RELEASED)
def test_variants_of_the_config_are_the_released_networks(variant, tmp_path):
  """Tensor by tensor, by name and shape; and their config is accepted."""
  said = PUBLISHED | RELEASED[variant]
  with torch.device('meta'):
    theirs = diffusers.SD3Transformer2DModel(**said)
  net = build.build(models, sd3_flow_grpo.get_config(variant).model.net)
  like = jax.eval_shape(net.init, jax.random.key(0))
  config = mmdit_files.config(dict(theirs.config))
  names = mmdit_files.names_of(config['layers'], len(config['dual']), True)
  places = released.places(like, names)
  want = {n: tuple(x.shape) for n, x in theirs.named_parameters()}
  assert {n: p.shape for n, p in places.items()} == want
  # Past the config there are only weights to be missed.
  theirs.save_config(tmp_path / 'transformer')
  with pytest.raises(WeightsError, match='has no diffusion_pytorch_model'):
    net.load(str(tmp_path), 'float32')


@pytest.mark.parametrize('scan', [False, True], ids=['blocks', 'scanned'])
@pytest.mark.parametrize('kind', KINDS)
def test_velocity_and_gradients(folder_of, gradients_of, kind, scan):
  model, _ = folder_of(kind)
  tensors = [torch.from_numpy(a) for a in inputs()]
  tensors[0].requires_grad_()
  weight = model.transformer_blocks[0].attn.add_k_proj.weight
  weight.grad = None
  want = theirs(model, *tensors)
  (want**2).sum().backward()

  v, grads, dx = gradients_of(kind, scan=scan)
  assert far(v, want.detach()) < 1e-5
  assert far(dx, tensors[0].grad) < 1e-4
  if scan:
    stack = 'dual_blocks' if 'medium' in kind else 'blocks'
    kernel = grads[stack]['attn']['add_k_proj']['kernel'][0]
  else:
    kernel = grads['transformer_blocks_0']['attn']['add_k_proj']['kernel']
  assert far(kernel.T, weight.grad) < 1e-4


@pytest.mark.parametrize('scan', [False, True], ids=['blocks', 'scanned'])
@pytest.mark.parametrize('kind', KINDS)
def test_back_to_diffusers(folder_of, tmp_path, kind, scan):
  model, folder = folder_of(kind)
  net, params = net_of(folder, scan=scan)
  net.save(str(tmp_path), params)
  again = diffusers.SD3Transformer2DModel.from_pretrained(
    tmp_path / 'transformer'
  )
  net.load(str(tmp_path), 'float32')  # its config says the same network
  want = model.state_dict()
  assert set(again.state_dict()) == set(want)
  for name, x in again.state_dict().items():
    if name == 'pos_embed.pos_embed':
      torch.testing.assert_close(x, want[name], rtol=0, atol=1e-6)
    else:
      assert torch.equal(x, want[name]), name


def test_rematerialised_blocks_have_the_same_gradients(gradients_of):
  _, want, _ = gradients_of('sd3.5 medium', scan=True)
  _, got, _ = gradients_of('sd3.5 medium', scan=True, remat='full')
  for name, x in tree.named(got).items():
    np.testing.assert_allclose(x, tree.named(want)[name], rtol=1e-4, atol=1e-4)


def test_bfloat16_stays_near(folder_of):
  model, folder = folder_of('sd3.5 medium')
  net, _ = net_of(folder, scan=True, dtype='bfloat16')
  params = net.load(str(folder), 'bfloat16')
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('bfloat16')}
  args = inputs()
  v = jax.jit(lambda params: ours(net, params, *args))(params)
  assert v.dtype == jnp.float32
  with torch.no_grad():
    want = theirs(model, *map(torch.from_numpy, args))
  assert far(v, want) < 0.1


def test_the_adapters_of_flow_grpo(folder_of):
  """Its targets as one pattern; scanned blocks have stacked ones."""
  pattern = r'/attn/(add_[qkv]_proj|to_add_out|to_[qkv]|to_out_0)$'
  _, folder = folder_of('sd3.5 medium')
  args = inputs()
  for scan in False, True:
    net, params = net_of(folder, scan=scan)
    adapted = lora.add(params, pattern, 2, 4.0, jax.random.key(0))
    a = {n: x for n, x in tree.named(adapted).items() if n.endswith('lora_a')}
    assert (
      sum(x.shape[0] if x.ndim == 3 else 1 for x in a.values()) == 4 * 8 - 1
    )
    run = jax.jit(lambda params, net=net: ours(net, params, *args))
    np.testing.assert_array_equal(run(adapted), run(params))


def test_no_prompt_needs_features():
  cond = dict(text=1, pooled=2)
  with pytest.raises(ValueError, match=r'data\.embed\.negative'):
    layers.null_features(cond)
  cond |= dict(null_text=3, null_pooled=4)
  assert layers.null_features(cond) == cond | dict(text=3, pooled=4)


def test_what_cannot_be_loaded(folder_of, tmp_path):
  _, folder = folder_of('sd3')
  said = released.config(folder / 'transformer')
  keys = mmdit_files.config(said)
  keys.pop('channels')
  other = mmdit.mmdit(image=SHAPE, **keys | dict(layers=3, qk_norm=True))
  with pytest.raises(ConfigError) as error:
    other.load(str(folder), 'float32')
  assert 'layers=4 and not 3, qk_norm=False and not True' in str(error.value)
  with pytest.raises(ValueError, match="qk_norm='layer_norm'.*new=1"):
    mmdit_files.config(said | dict(qk_norm='layer_norm', new=1))
  with pytest.raises(WeightsError, match='has no folder transformer'):
    net_folder = tmp_path / 'empty'
    net_folder.mkdir()
    other.load(str(net_folder), 'float32')
  path = tmp_path / 'transformer'
  net, params = net_of(folder)
  net.save(str(tmp_path), params)
  (path / 'config.json').write_text(
    json.dumps(said | dict(_class_name='FluxTransformer2DModel'))
  )
  net, _ = net_of(folder)
  with pytest.raises(WeightsError, match='is of FluxTransformer2DModel, where'):
    net.load(str(tmp_path), 'float32')
  (path / 'config.json').write_text(json.dumps(said | dict(sample_size=8)))
  less = mmdit.mmdit(image=SHAPE, **keys | dict(sample_size=8))
  with pytest.raises(WeightsError, match=r'differs by .* from the sines'):
    less.load(str(tmp_path), 'float32')


@pytest.mark.parametrize(
  'options, match',
  [
    (dict(image=(9, 8, 16)), 'not divisible by patch=2'),
    (dict(image=(64, 8, 16), grid=31), 'than grid=31 has positions'),
    (dict(dual=(23,)), 'not before the last one'),
    (dict(dual=(1,), scan=True), 'are not the first blocks'),
    (dict(attention='cudnn'), 'needs dtype="bfloat16"'),
  ],
)
def test_sizes_that_do_not_fit(options, match):
  with pytest.raises(ValueError, match=match):
    mmdit.mmdit(**options)
