"""Adapters that go to diffusers and come from there."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from gen_rl.build import ConfigError
from gen_rl.models import mmdit, mmdit_files
from gen_rl.models.files import peft, released
from gen_rl.models.files.weights import WeightsError
from gen_rl.models.parts import lora
from gen_rl.utils import tree

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')
LoraConfig, get_peft_model = (
  getattr(pytest.importorskip('peft'), n)
  for n in ('LoraConfig', 'get_peft_model')
)
get_peft_model_state_dict = pytest.importorskip(
  'peft.utils'
).get_peft_model_state_dict

TARGETS = (
  'attn.add_k_proj', 'attn.add_q_proj', 'attn.add_v_proj', 'attn.to_add_out',
  'attn.to_k', 'attn.to_out.0', 'attn.to_q', 'attn.to_v',
)  # fmt: skip
PATTERN = r'/attn/(add_[qkv]_proj|to_add_out|to_[qkv]|to_out_0)$'
ALPHA, RANK = 5.0, 3


@pytest.fixture
def pipeline(sd3_pipeline):
  """Theirs, without adapters before and after."""
  whole = sd3_pipeline[0]
  yield whole
  whole.unload_lora_weights()


@pytest.fixture(params=[False, True], ids=['blocks', 'scanned'], scope='module')
def ours(request, sd3_pipeline):
  """(net, parameters, names)."""
  folder = sd3_pipeline[1]
  said = mmdit_files.config(released.config(folder / 'transformer'))
  said.pop('channels')
  net = mmdit.mmdit(image=(8, 8, 16), **said, scan=request.param)
  names = mmdit_files.names_of(3, 1, request.param)
  return net, net.load(str(folder), 'float32'), names


def trained(params):
  """With numbers in every B."""
  adapted = lora.add(params, PATTERN, RANK, ALPHA, jax.random.key(0))
  rng = np.random.default_rng(0)
  leaves = tree.named(adapted)
  for name in leaves:
    if name.endswith('_lora_b'):
      drawn = rng.normal(size=leaves[name].shape)
      leaves[name] = jnp.asarray(drawn, jnp.float32)
  return tree.nest(leaves)


@pytest.mark.parametrize('init, theirs', [('kaiming', True), ('gaussian',) * 2])
@pytest.mark.parametrize('rank', [4, 32])
def test_adapters_are_drawn_as_theirs(init, theirs, rank):
  layer = torch.nn.Sequential(torch.nn.Linear(1024, 2))
  config = LoraConfig(r=rank, target_modules=['0'], init_lora_weights=theirs)
  with torch.random.fork_rng():
    torch.manual_seed(0)
    a = get_peft_model(layer, config).base_model.model[0].lora_A['default']
  a = a.weight.detach().numpy()
  params = dict(up=dict(kernel=jnp.zeros((1024, 2))))
  drawn = lora.add(params, 'up', rank, 1.0, jax.random.key(0), init)
  ours = np.asarray(drawn['up']['kernel_lora_a'])
  assert ours.shape == a.T.shape
  assert ours.std() == pytest.approx(a.std(), rel=0.05)
  # one is bounded, the other has tails
  for x in (ours, a):
    assert (np.abs(x).max() > 2.5 * x.std()) == (init == 'gaussian')
  if init == 'gaussian':
    assert ours.std() == pytest.approx(1 / rank, rel=0.05)


def inputs():
  rng = np.random.default_rng(1)
  x, text, pooled = (
    rng.normal(size=s).astype(np.float32)
    for s in ((2, 8, 8, 16), (2, 5, 32), (2, 18))
  )
  return x, np.array([0.9, 0.2], np.float32), text, pooled


def velocities(net, params, model):
  """(ours, theirs)."""
  x, t, text, pooled = inputs()

  @jax.jit
  def ours(params):
    encoded = net.encode(params, dict(text=text, pooled=pooled))
    return net.apply(params, x, t, encoded)

  with torch.no_grad():
    want = model(
      hidden_states=torch.from_numpy(x).permute(0, 3, 1, 2),
      timestep=1000 * torch.from_numpy(t),
      encoder_hidden_states=torch.from_numpy(text),
      pooled_projections=torch.from_numpy(pooled),
    ).sample.permute(0, 2, 3, 1).numpy()  # fmt: skip
  return np.asarray(ours(params)), want


def far(found, want):
  return np.abs(found - want).max() / np.abs(want).max()


def test_diffusers_loads_ours(ours, pipeline, tmp_path):
  net, params, names = ours
  adapted = trained(params)
  plain, _ = velocities(net, params, pipeline.transformer)
  peft.save(tmp_path / peft.FILE, adapted, names)
  pipeline.load_lora_weights(str(tmp_path))
  found, want = velocities(net, adapted, pipeline.transformer)
  assert far(found, want) < 1e-4
  assert far(found, plain) > 0.1
  again = changes(peft.load(tmp_path, params, names))
  for name, x in changes(adapted).items():
    np.testing.assert_allclose(again[name], x, atol=1e-5, err_msg=name)
  # Without the header, or another number in it: the matrices are all there is.
  tensors = safetensors.numpy.load_file(tmp_path / peft.FILE)
  at = 'transformer_blocks.0.attn.to_q'
  a, b = (tensors[f'transformer.{at}.lora_{x}.weight'] for x in 'AB')
  module = pipeline.transformer.get_submodule(at)
  np.testing.assert_allclose(b @ a, delta(module), atol=1e-5)


def changes(params):
  """{kernel: what its adapter adds to it}, of the layers in a stack, too."""
  leaves = tree.named(params)
  return {
    name.removesuffix('_lora_a'): np.asarray(
      np.reshape(leaves[name[:-1] + 'scale'], (*a.shape[:-2], 1, 1))
      * (np.asarray(a) @ np.asarray(leaves[name[:-1] + 'b']))
    )
    for name, a in leaves.items()
    if name.endswith('_lora_a')
  }


def delta(module):
  """Likewise of a module of PEFT: [out in]."""
  (name,) = module.lora_A
  return module.get_delta_weight(name).detach().numpy()


def adapted(model, **options):
  """Theirs, with numbers in every matrix; the tensors by their names."""
  config = dict(r=2, lora_alpha=6, target_modules=list(TARGETS)) | options
  model.add_adapter(LoraConfig(**config), 'default')
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, x in model.named_parameters():
      if 'lora_' in name:
        x.copy_(torch.randn(x.shape, generator=generator))
  layers = get_peft_model_state_dict(model)
  return {n: x.detach().numpy().copy() for n, x in layers.items()}


def same_changes(params, names, model):
  """Every adapter adds to its kernel what PEFT's does."""
  found = changes(params)
  modules = released.places({'x': np.zeros(1)} | params, names)
  checked = 0
  for name, place in modules.items():
    if place.leaf not in found:
      continue
    module = model.get_submodule(name.removesuffix('.weight'))
    x = found[place.leaf]
    x = x if place.index is None else x[place.index]
    want = delta(module) if hasattr(module, 'lora_A') else 0 * x.T
    np.testing.assert_allclose(x.T, want, atol=1e-5, err_msg=name)
    checked += hasattr(module, 'lora_A')
  return checked


def renamed(layers, down, up, alpha=None, above='transformer.', dots=True):
  """Tensors by other names."""
  ends = {'lora_A.weight': down, 'lora_B.weight': up}
  out = {}
  for name, x in layers.items():
    module, _, end = name.rpartition('.lora_')
    module = above + (module if dots else module.replace('.', '_'))
    out[module + ends[f'lora_{end}']] = x
    if alpha is not None:
      out[f'{module}.alpha'] = np.array(alpha)
  return out


OF_KOHYA = '.lora_down.weight', '.lora_up.weight', 6
FORMATS = {
  'kohya': (*OF_KOHYA, 'lora_transformer_', False),
  'ai-toolkit': (*OF_KOHYA, 'diffusion_model.'),
  'no alpha': ('.lora_down.weight', '.lora_up.weight'),
  'old diffusers': ('.lora.down.weight', '.lora.up.weight'),
  'in memory': ('.lora_A.default.weight', '.lora_B.default.weight'),
}


@pytest.mark.parametrize('kind', FORMATS)
def test_names_of_others(ours, pipeline, tmp_path, kind):
  _, params, names = ours
  alpha = 6 if len(FORMATS[kind]) > 2 else 2
  layers = adapted(pipeline.transformer, lora_alpha=alpha)
  path = tmp_path / 'any.safetensors'
  safetensors.numpy.save_file(renamed(layers, *FORMATS[kind]), path)
  loaded = peft.load(tmp_path, params, names)
  assert same_changes(loaded, names, pipeline.transformer) == len(layers) // 2


def test_attention_processors(ours, pipeline, tmp_path):
  """The oldest names of diffusers; modules of the others have none."""
  _, params, names = ours
  layers = adapted(pipeline.transformer, lora_alpha=2, target_modules=[
    f'transformer_blocks.1.attn.{x}' for x in ('to_q', 'to_out.0')
  ])  # fmt: skip
  layers = renamed(layers, '_lora.down.weight', '_lora.up.weight', above='')
  layers = {
    n.replace('attn.', 'attn.processor.').replace('to_out.0', 'to_out'): x
    for n, x in layers.items()
  }
  assert 'transformer_blocks.1.attn.processor.to_out_lora.up.weight' in layers
  safetensors.numpy.save_file(layers, tmp_path / peft.FILE)
  loaded = peft.load(tmp_path, params, names)
  assert same_changes(loaded, names, pipeline.transformer) == 2


@pytest.mark.parametrize(
  'options',
  [
    {},
    dict(use_rslora=True),
    dict(
      rank_pattern={'to_k': 5, 'transformer_blocks.0.attn.to_q': 1},
      alpha_pattern={'transformer_blocks.1.attn.to_k': 7.5, 'to_v': 1},
    ),
  ],
  ids=['plain', 'rslora', 'patterns'],
)
def test_a_folder_of_peft(ours, pipeline, tmp_path, options):
  """And the same from a header of diffusers, with our velocities."""
  net, params, names = ours
  model = pipeline.transformer
  layers = adapted(model, **options)
  tensors = {n: torch.from_numpy(x) for n, x in layers.items()}
  config = model.peft_config['default']
  type(pipeline).save_lora_weights(
    tmp_path / 'diffusers', tensors,
    transformer_lora_adapter_metadata=config.to_dict(),
  )  # fmt: skip
  folder = tmp_path / 'peft'
  config.save_pretrained(folder)
  safetensors.numpy.save_file(
    {f'base_model.model.{n}': x for n, x in layers.items()},
    folder / 'adapter_model.safetensors',
  )
  for at in (tmp_path / 'diffusers', folder):
    loaded = peft.load(at, params, names)
    assert same_changes(loaded, names, model) == len(layers) // 2
  if not options:
    found, want = velocities(net, loaded, model)
    assert far(found, want) < 1e-4


def test_a_start_computes_the_same(ours, pipeline, tmp_path):
  """Whatever rank and alpha the network has; the rest stays as drawn."""
  net, params, names = ours
  layers = adapted(pipeline.transformer, use_rslora=True)
  path = tmp_path / 'a.safetensors'
  alpha = 2**0.5 * 6  # alpha / 2 = 6 / sqrt(2)
  more = (*OF_KOHYA[:2], alpha, 'lora_transformer_', False)
  safetensors.numpy.save_file(renamed(layers, *more), path)
  new = lora.add(params, PATTERN, RANK, ALPHA, jax.random.key(0))
  started = net.adapt(str(path), new)
  assert same_changes(started, names, pipeline.transformer) == len(layers) // 2
  was = tree.named(new)
  for name, x in tree.named(started).items():
    assert x.dtype == was[name].dtype
    if name.endswith('_lora_a'):  # beyond the rank of the file
      np.testing.assert_array_equal(x[..., 2:], was[name][..., 2:], name)
    elif not name.endswith('_lora_b'):
      np.testing.assert_array_equal(x, was[name], name)
  # And what a run has written is what another goes on from.
  net.save(str(tmp_path / 'out'), started)
  again = changes(net.adapt(str(tmp_path / 'out'), new))
  for name, x in changes(started).items():
    np.testing.assert_allclose(again[name], x, atol=1e-5)
  for pattern, rank, said in (
    (PATTERN, 1, 'has adapters of rank 2, and lora.rank is 1'),
    ('/to_q$', 2, 'lora.pattern does not find: .* more$'),
  ):
    other = lora.add(params, pattern, rank, 1.0, jax.random.key(0))
    with pytest.raises(ConfigError, match=said):
      net.adapt(str(path), other)


def test_what_is_trained_beside_adapters_is_not_lost(ours, tmp_path):
  net, params, _ = ours
  leaves = tree.named(trained(params))
  leaves['proj_out/kernel'] = leaves['proj_out/kernel'] + 0.1
  with pytest.raises(ValueError, match='beside them: proj_out/kernel; merge'):
    net.save(str(tmp_path), tree.nest(leaves))
  net.save(str(tmp_path), lora.merge(tree.nest(leaves)))
  whole = released.load(tmp_path / 'transformer', params, ours[2])
  np.testing.assert_array_equal(
    whole['proj_out']['kernel'], leaves['proj_out/kernel']
  )


@pytest.mark.parametrize(
  'changed, said',
  [
    (dict(use_dora=True), 'use_dora=True, where it is False'),
    (dict(modules_to_save=['x'] * 999), 'modules_to_save='),
    (dict(new_option=1), 'new_option=1, an option that is not known'),
    (dict(init_lora_weights='pissa'), "init_lora_weights='pissa'"),
    (dict(alpha_pattern=[3]), 'alpha_pattern that is no object'),
    (dict(lora_alpha='x'), "alpha='x'"),
  ],
)
def test_options_that_are_not_computed(sd3_pipeline, tmp_path, changed, said):
  del sd3_pipeline
  config = dict(r=2, lora_alpha=2, loftq_config={}, lora_bias=False) | changed
  (tmp_path / 'adapter_config.json').write_text(json.dumps(config))
  path = tmp_path / 'adapter_model.safetensors'
  safetensors.numpy.save_file({'x.lora_A.weight': np.ones((2, 4))}, path)
  with pytest.raises(WeightsError, match='no floats'):
    peft.load(tmp_path, {}, released.PLAIN)
  safetensors.numpy.save_file({'x.lora_A.weight': np.float32([[1]])}, path)
  with pytest.raises(WeightsError, match=said) as error:
    peft.load(tmp_path, {}, released.PLAIN)
  assert len(str(error.value)) < 400


def test_files_that_do_not_fit(ours, tmp_path):
  _, params, names = ours
  with pytest.raises(ValueError, match='there are no adapters'):
    peft.save(tmp_path / peft.FILE, params, names)
  with pytest.raises(WeightsError, match='There is no file of adapters'):
    peft.load(tmp_path, params, names)
  path = tmp_path / peft.FILE
  peft.save(path, trained(params), names)
  tensors = safetensors.numpy.load_file(path)
  at = 'transformer.transformer_blocks.0.attn.'
  for i in range(999):
    tensors[f'transformer.other{i}.lora_A.weight'] = np.zeros((3, 2), 'f')
  del tensors[f'{at}to_q.lora_B.weight']
  tensors[f'{at}to_k.lora_A.weight'] = np.zeros((4, 9), np.float32)
  tensors[f'{at}to_v.lora_down.weight'] = np.zeros((4, 16), np.float32)
  safetensors.numpy.save_file(tensors, path)
  with pytest.raises(WeightsError) as error:
    peft.load(path, params, names)
  text = str(error.value)
  assert '999 of 1045 tensors are no adapters of this network, tran' in text
  assert 'and 995 more; two tensors for one place, ' in text
  assert f'only half of {at.removeprefix("transformer.")}to_q; ' in text
  assert 'to_k is [16, 3] x [4, 9] where [16, 16] is wanted' in text
  assert len(text) < 1000
  path.write_bytes(b'x')
  with pytest.raises(WeightsError, match='truncated or not'):
    peft.load(path, params, names)
