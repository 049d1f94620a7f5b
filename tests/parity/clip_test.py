"""CLIP and T5's encoder against transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import sharding
from gen_rl.models import clip, t5
from gen_rl.models.files import released
from gen_rl.models.files.weights import WeightsError
from gen_rl.utils import tree

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
torch.set_num_threads(1)

V, L, END = 50, 9, 47
TEXT = dict(
  vocab_size=V, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
  num_attention_heads=3, max_position_embeddings=L, projection_dim=10,
  bos_token_id=46, eos_token_id=END,
)  # fmt: skip
VISION = dict(
  hidden_size=32, intermediate_size=48, num_hidden_layers=3,
  num_attention_heads=4, image_size=12, patch_size=4, projection_dim=10,
)  # fmt: skip


def randomize(model):
  """Numbers of numpy in every tensor; norms' scales around one."""
  rng = np.random.default_rng(0)
  with torch.no_grad():
    for name, x in sorted(model.named_parameters()):
      noise = torch.from_numpy(np.asarray(rng.normal(size=x.shape))).float()
      if x.ndim > 1 and 'embedding' not in name:
        noise = noise / np.sqrt(np.prod(x.shape[1:]))
      scale = 'norm' in name and name.endswith('weight')
      x.copy_(1 + 0.3 * noise if scale else noise)
  return model.eval()


def both(act='quick_gelu', end=END):
  config = transformers.CLIPConfig(
    text_config=TEXT | dict(hidden_act=act, eos_token_id=end),
    vision_config=VISION | dict(hidden_act=act),
    projection_dim=10,
  )
  return transformers.CLIPModel(config)


MODELS = {
  'both': both,
  'both, gelu': functools.partial(both, 'gelu'),
  'both, old end': functools.partial(both, end=2),
  'text': lambda: transformers.CLIPTextModel(
    transformers.CLIPTextConfig(**TEXT)
  ),
  'text, projected': lambda: transformers.CLIPTextModelWithProjection(
    transformers.CLIPTextConfig(**TEXT, hidden_act='gelu')
  ),
  'pictures': lambda: transformers.CLIPVisionModelWithProjection(
    transformers.CLIPVisionConfig(**VISION)
  ),
}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """kind -> (their model, its folder)."""

  @functools.cache
  def make(kind):
    model = randomize(MODELS[kind]() if kind in MODELS else t5_model())
    folder = tmp_path_factory.mktemp('clip')
    model.save_pretrained(folder)
    return model, folder

  return make


def tokens():
  """Texts of unlike lengths, padded by the end token, as CLIP has it."""
  rng = np.random.default_rng(1)
  ids = rng.integers(1, 46, (4, L))
  ids[:, 0] = 46
  for row, length in zip(ids, (2, 5, 8, 8), strict=True):
    row[length:] = END
  return ids.astype(np.int32)


def pixels():
  rng = np.random.default_rng(2)
  return rng.normal(size=(2, 12, 12, 3)).astype(np.float32)


def far(found, want):
  want = want.detach().numpy() if hasattr(want, 'detach') else want
  assert found.shape == want.shape
  assert np.abs(want).max() > 1e-3
  return np.abs(np.asarray(found) - want).max() / np.abs(want).max()


@pytest.mark.parametrize('kind', [k for k in MODELS if k != 'pictures'])
def test_texts(saved, kind):
  model, folder = saved(kind)
  net, params = clip.load(folder)
  ids = tokens()
  found = jax.jit(net.text)(params, ids)
  long = torch.from_numpy(ids).long()
  tower = getattr(model, 'text_model', model)
  out = tower(long, output_hidden_states=True)
  assert far(found.last, out.last_hidden_state) < 1e-5
  assert far(found.before, out.hidden_states[-2]) < 1e-5
  assert far(found.pooled, out.pooler_output) < 1e-5
  if kind == 'text':
    assert found.projected is None
  elif kind == 'text, projected':
    assert far(found.projected, model(long).text_embeds) < 1e-5
  else:
    want = model.text_projection(out.pooler_output)
    assert far(found.projected, want) < 1e-5


@pytest.mark.parametrize('scan', [False, True], ids=['blocks', 'scanned'])
@pytest.mark.parametrize('kind', ['both', 'both, gelu', 'pictures'])
def test_pictures_and_gradients(saved, kind, scan):
  model, folder = saved(kind)
  net, params = clip.load(folder, scan=scan)
  x = torch.from_numpy(pixels()).requires_grad_()
  chw = x.permute(0, 3, 1, 2)
  if kind == 'pictures':
    want = model(chw).image_embeds
  else:
    seen = model.vision_model(pixel_values=chw).pooler_output
    want = model.visual_projection(seen)
  weight = model.vision_model.encoder.layers[1].mlp.fc1.weight
  weight.grad = None
  (want**2).sum().backward()

  def loss(params, x):
    y = net.image(params, x)
    return jnp.sum(y**2), y

  (_, y), (grads, dx) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
    params, pixels()
  )
  assert far(y, want) < 1e-5
  assert far(dx, x.grad) < 1e-4
  layers = grads['vision_model']['encoder']
  kernel = (
    layers['layers']['mlp']['fc1']['kernel'][1]
    if scan else layers['layers_1']['mlp']['fc1']['kernel']
  )  # fmt: skip
  assert far(kernel.T, weight.grad) < 1e-4


def test_pairs_are_scored_alike(saved):
  model, folder = saved('both')
  net, params = clip.load(folder)
  ids, x = tokens(), pixels()
  out = model(
    input_ids=torch.from_numpy(ids).long(),
    pixel_values=torch.from_numpy(x).permute(0, 3, 1, 2),
  )

  @jax.jit
  def scored(params, ids, x):
    image, text = net.image(params, x), net.text(params, ids).projected
    scale = jnp.exp(params['logit_scale'])
    return scale * clip.similarity(image[:, None], text[None])

  found = scored(params, ids, x)
  assert far(found, out.logits_per_image) < 1e-5


def test_files_with_and_without_the_name_of_the_network(saved, tmp_path):
  """Files of transformers 4 have it, those of 5 have not."""
  import safetensors.numpy  # noqa: PLC0415

  model, folder = saved('text')
  tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
  bare = {n.removeprefix('text_model.'): x for n, x in tensors.items()}
  for names in (bare, {f'text_model.{n}': x for n, x in bare.items()}):
    safetensors.numpy.save_file(names, tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_bytes(
      (folder / 'config.json').read_bytes()
    )
    net, params = clip.load(tmp_path)
    want = model(torch.from_numpy(tokens()).long()).last_hidden_state
    assert far(net.text(params, tokens()).last, want) < 1e-5


def t5_model():
  return transformers.T5EncoderModel(transformers.T5Config(
    vocab_size=V, d_model=24, d_kv=6, d_ff=40, num_layers=3, num_heads=3,
    feed_forward_proj='gated-gelu', relative_attention_num_buckets=8,
    relative_attention_max_distance=20,
  ))  # fmt: skip


@pytest.mark.parametrize('masked', [False, True])
def test_t5(saved, masked):
  model, folder = saved('t5')
  net, params = t5.load(folder)
  rng = np.random.default_rng(3)
  ids = rng.integers(1, V, (2, 40)).astype(np.int32)  # past the last bucket
  mask = np.arange(40) < np.array([[40], [17]]) if masked else None
  want = model(
    torch.from_numpy(ids).long(),
    attention_mask=None if mask is None else torch.from_numpy(mask).long(),
  ).last_hidden_state
  found = jax.jit(net.apply)(params, ids, mask)
  if masked:  # what padding says of itself is not used
    found, want = found[1, :17], want[1, :17]
  assert far(found, want) < 1e-5


def test_t5_gradient(saved):
  model, folder = saved('t5')
  net, params = t5.load(folder)
  ids = np.random.default_rng(3).integers(1, V, (2, 12)).astype(np.int32)
  (model(torch.from_numpy(ids).long()).last_hidden_state ** 2).sum().backward()
  loss = lambda p: jnp.sum(net.apply(p, ids) ** 2)
  grads = jax.jit(jax.grad(loss))(params)
  first = model.encoder.block[0].layer[0].SelfAttention
  ours = grads['encoder']['block_0']['layer_0']['SelfAttention']
  want = first.relative_attention_bias.weight.grad
  assert far(ours['relative_attention_bias']['embedding'], want) < 1e-4
  assert far(ours['q']['kernel'].T, first.q.weight.grad) < 1e-4


def test_every_parameter_has_axes(saved):
  for kind, module in dict(both=clip, t5=t5).items():
    net, params = module.load(saved(kind)[1])
    for name, x in tree.named(params).items():
      sharding.logical_axes(name, x.ndim, net.axes)


def test_configs_that_say_it_twice():
  """Those of openai and laion; transformers believes the second."""
  said = dict(
    text_config=dict(hidden_act='quick_gelu', hidden_size=32, eos_token_id=2),
    text_config_dict=dict(hidden_act='gelu', hidden_size=24, num_attention_heads
    =3),
    vision_config=dict(hidden_act='gelu', num_hidden_layers=4),
    vision_config_dict=dict(hidden_size=48, patch_size=14, eos_token_id=None),
    projection_dim=9,
  )  # fmt: skip
  want = transformers.CLIPConfig(**{
    name: dict(x) if isinstance(x, dict) else x for name, x in said.items()
  })  # fmt: skip
  found = clip.config(said | dict(architectures=['CLIPModel']))
  text, vision = want.text_config, want.vision_config
  for part, theirs in ((found['text'], text), (found['vision'], vision)):
    assert part == dict(
      width=theirs.hidden_size, layers=theirs.num_hidden_layers,
      heads=theirs.num_attention_heads, mlp=theirs.intermediate_size,
      act=theirs.hidden_act, eps=theirs.layer_norm_eps,
    )  # fmt: skip
  assert (found['end'], found['vocab']) == (text.eos_token_id, text.vocab_size)
  assert (found['patch'], found['projection']) == (vision.patch_size, 9)


def back(folder, params, names, kind, said, tmp_path):
  """Saves by ours, loads by theirs: (missing, unequal) tensors."""
  released.save(tmp_path, params, names, said)
  old, new = (kind.from_pretrained(x).state_dict() for x in (folder, tmp_path))
  assert old and set(old) == set(new)
  return [n for n in old if not torch.equal(old[n], new[n])]


@pytest.mark.parametrize('scan', [False, True], ids=['blocks', 'scanned'])
def test_both_networks_go_back(saved, tmp_path, scan):
  model, folder = saved('both')
  _, params = clip.load(folder, scan=scan)
  names = clip.NAMES if scan else clip.NAMES._replace(stacked={})
  said = released.config(folder)
  assert not back(folder, params, names, type(model), said, tmp_path)


@pytest.mark.parametrize('kind', ['text', 'text, projected', 'pictures', 't5'])
def test_one_network_goes_back(saved, tmp_path, kind):
  model, folder = saved(kind)
  module = t5 if kind == 't5' else clip
  _, params = module.load(folder)
  names = module.NAMES
  if module is clip:
    names = clip.ALONE['vision' if kind == 'pictures' else 'text']
    names = names._replace(stacked={})
  said = released.config(folder)
  assert not back(folder, params, names, type(model), said, tmp_path)


def test_what_cannot_be_loaded(saved):
  said = released.config(saved('both')[1])
  with pytest.raises(ValueError, match='SiglipModel'):
    clip.config(said | dict(architectures=['SiglipModel']))
  with pytest.raises(ValueError, match="vision hidden_act='relu'"):
    vision = said['vision_config'] | dict(hidden_act='relu')
    clip.config(said | dict(vision_config=vision))
  with pytest.raises(WeightsError, match='is of t5 / T5EncoderModel'):
    clip.load(saved('t5')[1])
  said5 = released.config(saved('t5')[1])
  for option, value in dict(
    feed_forward_proj='relu', dense_act_fn='gelu', is_gated_act=False
  ).items():
    with pytest.raises(ValueError, match=f'{option}={value!r}, where it is'):
      t5.config(said5 | {option: value})
  vision = said['vision_config'] | dict(image_size=[12, 12])
  with pytest.raises(ValueError, match=r'vision image_size=\[12, 12\]'):
    clip.config(said | dict(vision_config=vision))
  net, params = clip.load(saved('both')[1])
  with pytest.raises(ValueError, match='have 10 tokens and the table'):
    net.text(params, np.zeros((1, 10), np.int32))
  with pytest.raises(ValueError, match='pictures of 16x16 pixels, where 12x12'):
    net.image(params, np.zeros((1, 16, 16, 3)))
