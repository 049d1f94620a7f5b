"""ImageReward's network against the BLIP of transformers, in its own names.

The vision transformer and the text encoder of transformers, and the linear
layers of ImageReward behind them, are written as ImageReward's file is.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from gen_rl.models import blip
from gen_rl.models.files import pickles, released
from gen_rl.models.files.weights import WeightsError
from gen_rl.utils import tree

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
blip_text = pytest.importorskip('transformers.models.blip.modeling_blip_text')
torch.set_num_threads(1)  # small products; other processes have the cores

V, HEAD = 41, (8, 6, 5, 4, 1)
VISION = dict(image=16, patch=4, width=16, layers=2, heads=2, head=HEAD)
CONFIG = dict(
  model_type='bert', hidden_act='gelu', hidden_size=12, intermediate_size=20,
  num_hidden_layers=2, num_attention_heads=3, vocab_size=V, pad_token_id=0,
  max_position_embeddings=10, layer_norm_eps=1e-12, type_vocab_size=2,
  add_cross_attention=True, encoder_width=768,
)  # fmt: skip
# transformers' names of the vision transformer -> timm's, as in the file.
TIMM = (
  (r'^embeddings\.class_embedding', 'cls_token'),
  (r'^embeddings\.position_embedding', 'pos_embed'),
  (r'^embeddings\.patch_embedding', 'patch_embed.proj'),
  (r'^encoder\.layers', 'blocks'),
  (r'\.self_attn\.projection', '.attn.proj'),
  (r'\.self_attn', '.attn'),
  (r'\.layer_norm', '.norm'),
  (r'^post_layernorm', 'norm'),
)


class Theirs(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.vision = transformers.BlipVisionModel(
      transformers.BlipVisionConfig(
        hidden_size=16, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, image_size=16, patch_size=4,
        layer_norm_eps=1e-6,
      )
    )  # fmt: skip
    # is_decoder gives it the layers that look at the picture.
    config = {k: v for k, v in CONFIG.items() if k != 'model_type'}
    self.text = blip_text.BlipTextModel(
      transformers.BlipTextConfig(
        **config, encoder_hidden_size=16, is_decoder=True, bos_token_id=1,
        sep_token_id=2,
      ),
      add_pooling_layer=False,
    )  # fmt: skip
    widths = (12, *HEAD)
    layers = [torch.nn.Linear(*x) for x in zip(widths, HEAD, strict=False)]
    drop = [torch.nn.Dropout(0.2) for _ in range(3)]
    a, b, c, d, e = layers
    self.mlp = torch.nn.Sequential(a, drop[0], b, drop[1], c, drop[2], d, e)

  def forward(self, pixels, tokens):
    seen = self.vision(pixels).last_hidden_state
    out = self.text(
      tokens, attention_mask=(tokens != 0).long(), encoder_hidden_states=seen,
      encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long),
      is_decoder=False,
    )  # fmt: skip
    score = self.mlp(out.last_hidden_state[:, 0])
    return (score[:, 0] - 0.16717362830052426) / 1.0333394966054072

  def file_names(self):
    """{name here: name in the file}."""
    out = {}
    for name, _ in self.named_parameters():
      part, rest = name.split('.', 1)
      if part == 'vision':
        for pattern, new in TIMM:
          rest = re.sub(pattern, new, rest)
      where = dict(
        vision='blip.visual_encoder', text='blip.text_encoder', mlp='mlp.layers'
      )
      out[name] = f'{where[part]}.{rest}'
    return out


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  """(their model, the folder, our net, our parameters)."""
  model = Theirs().eval()
  rng = np.random.default_rng(0)
  with torch.no_grad():
    for name, x in sorted(model.named_parameters()):
      noise = torch.from_numpy(rng.normal(size=x.shape)).float()
      if name.endswith('weight') and x.ndim > 1 and '_embeddings' not in name:
        x.copy_(noise / x[0].numel() ** 0.5)
      else:
        around = 'norm' in name.lower() and name.endswith('weight')
        x.copy_(float(around) + 0.3 * noise)
  folder = tmp_path_factory.mktemp('blip')
  names = model.file_names()
  file = {names[n]: p.detach().numpy() for n, p in model.named_parameters()}
  # What ImageReward's file has besides, and nothing reads.
  numbers = np.ones((1, 3), np.float32)
  extra = dict.fromkeys(
    ('blip.vision_proj.weight', 'blip.text_proj.bias'), numbers
  )
  extra['blip.text_encoder.embeddings.position_ids'] = np.arange(10)[None]
  state = {n: torch.from_numpy(x) for n, x in (file | extra).items()}
  torch.save(state, folder / 'ImageReward.pt')
  (folder / 'med_config.json').write_text(json.dumps(CONFIG))
  return model, folder, *blip.load(folder, **VISION)


def pixels():
  rng = np.random.default_rng(1)
  return rng.normal(size=(4, 16, 16, 3)).astype(np.float32)


def tokens():
  """Texts of unlike lengths, padded on the right."""
  ids = np.random.default_rng(2).integers(1, V, (4, 7))
  ids[np.arange(7) >= np.array([7, 2, 5, 1])[:, None]] = 0
  return ids.astype(np.int32)


def error(found, want):
  found, want = np.asarray(found), np.asarray(want)
  assert found.shape == want.shape
  return np.abs(found - want).max() / np.abs(want).max()


def test_scores_and_gradients(loaded):
  model, _, net, params = loaded
  x, ids = pixels(), tokens()
  taken = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
  taken.requires_grad_()
  want = model(taken, torch.from_numpy(ids).long())
  assert want.std() > 0.1
  weight = np.array([1.0, -2.0, 0.5, 3.0], np.float32)
  model.zero_grad()
  (want * torch.from_numpy(weight)).sum().backward()

  def loss(params, x):
    scores = net.apply(params, x, ids)
    return (scores * weight).sum(), scores

  (own, of_x), found = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
  assert found.dtype == jnp.float32
  assert error(found, want.detach()) < 1e-5
  assert error(of_x, taken.grad.permute(0, 2, 3, 1)) < 1e-4
  grads = {n: p.grad.numpy() for n, p in model.named_parameters()}
  ours = dict(released.tensors(own, blip.NAMES))
  names = model.file_names()
  assert set(ours) == set(names.values())
  for name in (
    'vision.embeddings.position_embedding',
    'vision.encoder.layers.0.self_attn.qkv.weight',
    'text.embeddings.word_embeddings.weight',
    'text.encoder.layer.0.attention.self.query.weight',
    'text.encoder.layer.1.crossattention.self.key.weight',
    'mlp.2.weight',
  ):
    assert error(ours[names[name]], grads[name]) < 1e-4, name


def test_padding_is_not_seen(loaded):
  _, _, net, params = loaded
  ids = tokens()
  longer = np.pad(ids, ((0, 0), (0, 3)))
  apply = jax.jit(net.apply)
  want = apply(params, pixels(), ids)
  assert error(apply(params, pixels(), longer), want) < 1e-5


def test_files_come_back(loaded, tmp_path):
  """Bit by bit, but for what nothing reads."""
  model, folder, _, params = loaded
  released.save(tmp_path, params, blip.NAMES, CONFIG)
  with pickles.File(folder / 'ImageReward.pt') as file:
    names = file.keys()
    want = {name: file.get_tensor(name) for name in names}
  found = safetensors.numpy.load_file(tmp_path / 'model.safetensors')
  assert set(found) == set(model.file_names().values())
  for name, x in found.items():
    np.testing.assert_array_equal(x, want[name], name)


def test_scanned_blocks(loaded):
  _, folder, net, params = loaded
  scanned, stacked = blip.load(folder, **VISION, scan=True, remat='full')
  leaf = stacked['blip']['text_encoder']['encoder']['layer']
  assert leaf['crossattention']['self']['key']['kernel'].shape == (2, 16, 12)

  def gradient(net, params):
    def loss(x):
      scores = net.apply(params, x, tokens())
      return scores.sum(), scores

    return jax.jit(jax.grad(loss, has_aux=True))(pixels())

  found, want = gradient(scanned, stacked), gradient(net, params)
  assert error(found[1], want[1]) < 1e-5
  assert error(found[0], want[0]) < 1e-5


def test_bfloat16(loaded):
  _, folder, net, params = loaded
  rough, cast = blip.load(folder, 'bfloat16', **VISION, dtype='bfloat16')
  assert {x.dtype for x in jax.tree.leaves(cast)} == {jnp.dtype('bfloat16')}
  found = jax.jit(rough.apply)(cast, pixels(), tokens())
  want = jax.jit(net.apply)(params, pixels(), tokens())
  assert 1e-4 < error(found, want) < 0.2


def test_released_sizes():
  """BLIP's large vision transformer and BERT's base: as the paper counts."""
  own = jax.eval_shape(blip.image_reward().init, jax.random.key(0))
  count = {k: tree.size(v) for k, v in own['blip'].items()}
  with torch.device('meta'):
    vision = transformers.BlipVisionModel(
      transformers.BlipVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
        num_attention_heads=16, image_size=224, patch_size=16,
      )
    )  # fmt: skip
    text = blip_text.BlipTextModel(
      transformers.BlipTextConfig(
        vocab_size=30524, hidden_size=768, encoder_hidden_size=1024,
        intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=512, is_decoder=True,
      ),
      add_pooling_layer=False,
    )  # fmt: skip
  assert count == dict(
    visual_encoder=sum(p.numel() for p in vision.parameters()),
    text_encoder=sum(p.numel() for p in text.parameters()),
  )


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(hidden_act='relu'), "hidden_act='relu'"),
    (dict(add_cross_attention=False), 'add_cross_attention=False'),
    (dict(position_embedding_type='relative_key'), 'relative_key'),
    (dict(vocab_size=None), 'vocab_size=None'),
    (dict(pad_token_id=3), 'pad_token_id=3'),
  ],
)
def test_what_is_not_computed_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    blip.config(CONFIG | change)


def test_bad_input_is_said(loaded):
  _, folder, net, params = loaded
  with pytest.raises(ValueError, match=r'\[12, 16, 3\].*\[16, 16, 3\]'):
    net.apply(params, pixels()[:, :12], tokens())
  with pytest.raises(ValueError, match='11 tokens.*10 rows'):
    net.apply(params, pixels(), np.ones((4, 11), np.int32))
  with pytest.raises(WeightsError, match=r'blocks\.2\.'):
    blip.load(folder, **VISION | dict(layers=3))
