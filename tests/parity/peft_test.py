"""Adapters that go to diffusers and come from there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from gen_rl.models import lora, mmdit, mmdit_files, peft, released
from gen_rl.models.weights import WeightsError
from gen_rl.utils import tree

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')
LoraConfig, get_peft_model = (
  getattr(pytest.importorskip('peft'), n)
  for n in ('LoraConfig', 'get_peft_model')
)

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


@pytest.fixture(params=[False, True], ids=['blocks', 'scanned'])
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
  again = peft.load(tmp_path, params, names)
  for name, x in tree.named(adapted).items():
    np.testing.assert_array_equal(tree.named(again)[name], x, name)


def test_ours_loads_theirs(ours, pipeline, tmp_path):
  from peft import LoraConfig  # noqa: PLC0415 - an extra
  from peft.utils import get_peft_model_state_dict  # noqa: PLC0415

  net, params, names = ours
  model = pipeline.transformer
  model.add_adapter(
    LoraConfig(r=2, lora_alpha=6, target_modules=list(TARGETS)), 'default'
  )
  with torch.no_grad():
    for name, x in model.named_parameters():
      if 'lora_B' in name:
        x.copy_(torch.randn(x.shape))
  layers = get_peft_model_state_dict(model)
  for metadata in (
    dict(transformer_lora_adapter_metadata=model.peft_config['default']
         .to_dict()),
    {},
  ):  # fmt: skip
    type(pipeline).save_lora_weights(tmp_path, layers, **metadata)
    found, want = velocities(net, peft.load(tmp_path, params, names), model)
    if metadata:
      assert far(found, want) < 1e-4
    else:  # nothing says that alpha is 6, so it is the rank
      assert far(found, want) > 1e-2
      scale = model.transformer_blocks[0].attn.to_q.scaling['default']
      assert scale == 3.0


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
  tensors['transformer.other.lora_A.weight'] = np.zeros((3, 2), np.float32)
  del tensors[f'{at}to_q.lora_B.weight']
  tensors[f'{at}to_k.lora_A.weight'] = np.zeros((4, 9), np.float32)
  safetensors.numpy.save_file(tensors, path)
  with pytest.raises(WeightsError) as error:
    peft.load(path, params, names)
  text = str(error.value)
  assert 'unexpected transformer.other.lora_A.weight; only half of' in text
  assert (
    'to_k is [16, 3] x [4, 9] where [16, 16] is wanted; ranks [3, 4]' in text
  )
  path.write_bytes(b'x')
  with pytest.raises(WeightsError, match='truncated or not'):
    peft.load(path, params, names)
