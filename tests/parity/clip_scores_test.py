"""Scores of CLIP models against torch: pictures and texts as they come."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl.build import ConfigError
from gen_rl.data import tokenizers
from gen_rl.models import open_clip
from gen_rl.models.weights import WeightsError
from gen_rl.rewards import clip_scores
from gen_rl.types import RewardInputs

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

SIDE, G = 24, 2
TEXTS = ['a red square', 'three blue circles']
KEY = jax.random.key(0)


@pytest.fixture(scope='module')
def saved(tmp_path_factory, clip_tokenizer, randomize):
  """(their model, their tokenizer, the folder of both)."""
  root = tmp_path_factory.mktemp('clip_scores')
  tokenizer = clip_tokenizer(root / 'a', '<|endoftext|>')
  tower = dict(intermediate_size=40, num_hidden_layers=2, hidden_act='gelu')
  config = transformers.CLIPConfig(
    text_config=tower | dict(
      vocab_size=80, hidden_size=24, num_attention_heads=3, eos_token_id=2,
    ),
    vision_config=tower | dict(
      hidden_size=32, num_attention_heads=4, image_size=SIDE, patch_size=8,
    ),
    projection_dim=16,
  )  # fmt: skip
  model = randomize(transformers.CLIPModel(config))
  with torch.no_grad():
    model.logit_scale.fill_(3.0)
  model.save_pretrained(root / 'model')
  tokenizer.save_pretrained(root / 'model')
  return model, tokenizer, str(root / 'model')


@pytest.fixture(scope='module')
def seen(saved):
  """(what rewards are given, their tokens, their pixels)."""
  _, tokenizer, folder = saved
  rng = np.random.default_rng(0)
  # Smooth pictures of another size, in 8 bits so that both see the same.
  small = rng.uniform(size=(4, 6, 9, 3))
  big = jax.image.resize(small, (4, 40, 60, 3), 'cubic')
  whole = np.round(255 * np.clip(big, 0, 1)).astype(np.uint8)
  reader = tokenizers.pretrained(folder)
  ids = np.repeat(reader.encode(TEXTS, 77), G, 0)
  inputs = RewardInputs(
    jnp.asarray(whole / 255, jnp.float32), dict(clip=jnp.asarray(ids)), G
  )
  processor = transformers.CLIPImageProcessor(
    size=dict(shortest_edge=SIDE), crop_size=dict(height=SIDE, width=SIDE)
  )
  pixels = processor(list(whole), return_tensors='pt').pixel_values
  theirs = tokenizer(
    [t for t in TEXTS for _ in range(G)], padding='max_length', max_length=77,
    return_tensors='pt',
  ).input_ids  # fmt: skip
  return reader, inputs, theirs, pixels


def cosine(model, ids, pixels):
  with torch.no_grad():
    out = model(input_ids=ids, pixel_values=pixels)
    x = out.image_embeds / out.image_embeds.norm(dim=-1, keepdim=True)
    y = out.text_embeds / out.text_embeds.norm(dim=-1, keepdim=True)
  return (x * y).sum(-1).numpy()


def test_scores(saved, seen):
  model, _, folder = saved
  reader, inputs, ids, pixels = seen
  want = cosine(model, ids, pixels)
  assert np.ptp(want) > 0.1
  for reward, value in (
    (clip_scores.clip_score(reader, folder), want),
    (
      clip_scores.clip_score(reader, folder, w=2.5, floor=True),
      2.5 * np.maximum(want, 0),
    ),
    (clip_scores.pickscore(reader, folder), np.exp(3.0) * want / 26),
    (clip_scores.hps(reader, folder), want),
  ):
    out = jax.jit(lambda p, r=reward: r.score(p, inputs, KEY))(reward.params)
    assert out.valid.all()
    # Their processor rounds to 8 bits after resizing.
    np.testing.assert_allclose(out.score, value, rtol=5e-3, atol=5e-3)


def test_scores_of_the_same_pixels_are_the_same(saved, seen, monkeypatch):
  model, _, folder = saved
  reader, inputs, ids, pixels = seen
  given = jnp.asarray(pixels.permute(0, 2, 3, 1).numpy())
  monkeypatch.setattr(clip_scores.vit, 'fitted', lambda *_: given)
  out = clip_scores.hps(reader, folder)
  found = out.score(out.params, inputs, KEY).score
  np.testing.assert_allclose(found, cosine(model, ids, pixels), atol=1e-5)


def test_gradients_reach_the_pixels(saved, seen):
  _, _, folder = saved
  reader, inputs, *_ = seen
  for reward in (
    clip_scores.pickscore(reader, folder),
    clip_scores.pickscore(reader, 'drawn'),
    clip_scores.aesthetic('drawn'),
  ):
    assert reward.differentiable

    def total(media, reward=reward):
      return reward.score(
        reward.params, inputs._replace(media=media), KEY
      ).score.sum()

    dx = jax.grad(total)(inputs.media)
    assert jnp.isfinite(dx).all() and float(jnp.abs(dx).max()) > 1e-6


def test_broken_pictures_are_not_valid(seen):
  reader, inputs, *_ = seen
  media = inputs.media.at[1, 3, 3].set(jnp.nan)
  for reward in (
    clip_scores.hps(reader, 'drawn'),
    clip_scores.aesthetic('drawn'),
  ):
    out = reward.score(reward.params, inputs._replace(media=media), KEY)
    np.testing.assert_array_equal(out.valid, [True, False, True, True])
    assert jnp.isfinite(out.score).all()


def open_clip_names(model):
  """Their tensors as open_clip's file has them."""
  out = collections.OrderedDict(attn_mask=torch.zeros(77, 77))
  for part, prefix in (('text_model', ''), ('vision_model', 'visual.')):
    tower = getattr(model, part)
    for i, layer in enumerate(tower.encoder.layers):
      at = f'{prefix}transformer.resblocks.{i}.'
      own = layer.self_attn
      joined = torch.nn.MultiheadAttention(own.embed_dim, own.num_heads)
      for kind in 'weight', 'bias':
        three = [getattr(getattr(own, f'{n}_proj'), kind) for n in 'qkv']
        getattr(joined, f'in_proj_{kind}').data = torch.cat(three)
        setattr(joined.out_proj, kind, getattr(own.out_proj, kind))
      out |= {f'{at}attn.{n}': x for n, x in joined.state_dict().items()}
      for theirs, ours in (
        ('ln_1', layer.layer_norm1), ('ln_2', layer.layer_norm2),
        ('mlp.c_fc', layer.mlp.fc1), ('mlp.c_proj', layer.mlp.fc2),
      ):  # fmt: skip
        out |= {f'{at}{theirs}.{n}': x for n, x in ours.state_dict().items()}
  text, vision = model.text_model, model.vision_model
  for name, module in dict(
    ln_final=text.final_layer_norm, token_embedding=text.embeddings
    .token_embedding,
  ).items():  # fmt: skip
    out |= {f'{name}.{n}': x for n, x in module.state_dict().items()}
  for name, module in {
    'visual.ln_pre': vision.pre_layrnorm, 'visual.ln_post': vision
    .post_layernorm, 'visual.conv1': vision.embeddings.patch_embedding,
  }.items():  # fmt: skip
    out |= {f'{name}.{n}': x for n, x in module.state_dict().items()}
  out['positional_embedding'] = text.embeddings.position_embedding.weight
  out['text_projection'] = model.text_projection.weight.T
  out['logit_scale'] = model.logit_scale
  embeddings = vision.embeddings
  out['visual.class_embedding'] = embeddings.class_embedding
  out['visual.positional_embedding'] = embeddings.position_embedding.weight
  out['visual.proj'] = model.visual_projection.weight.T
  return {n: x.detach().clone() for n, x in out.items()}


def test_hps_from_a_file_of_open_clip(saved, seen, tmp_path):
  model, _, folder = saved
  reader, inputs, *_ = seen
  path = str(tmp_path / 'HPS.pt')
  torch.save(dict(epoch=1, state_dict=open_clip_names(model)), path)
  want = clip_scores.hps(reader, folder)
  got = clip_scores.hps(reader, path, text_head=8, vision_head=8)
  np.testing.assert_allclose(
    got.score(got.params, inputs, KEY).score,
    want.score(want.params, inputs, KEY).score,
    atol=1e-6,
  )
  torch.save(dict(a=torch.ones(2)), path)
  with pytest.raises(WeightsError, match='no CLIP of open_clip'):
    open_clip.load(path)


def test_aesthetic(saved, seen, tmp_path):
  model, _, folder = saved
  _, inputs, _, pixels = seen
  layers = [
    torch.nn.Linear(16, 1024), torch.nn.Dropout(0.2),
    torch.nn.Linear(1024, 128), torch.nn.Dropout(0.2),
    torch.nn.Linear(128, 64), torch.nn.Dropout(0.1), torch.nn.Linear(64, 16),
    torch.nn.Linear(16, 1),
  ]  # fmt: skip
  head = torch.nn.Sequential(*layers).eval()
  path = str(tmp_path / 'head.pth')
  torch.save({f'layers.{n}': x for n, x in head.state_dict().items()}, path)
  with torch.no_grad():
    seen_by = model.vision_model(pixel_values=pixels).pooler_output
    x = model.visual_projection(seen_by)
    want = head(x / x.norm(dim=-1, keepdim=True))[:, 0].numpy()
  reward = clip_scores.aesthetic(folder, path)
  out = reward.score(reward.params, inputs, KEY)
  np.testing.assert_allclose(out.score, want, rtol=2e-3, atol=1e-3)
  with pytest.raises(ConfigError, match='it needs both'):
    clip_scores.aesthetic(folder)
  with pytest.raises(WeightsError, match=r'layers\.0\.weight is float'):
    clip_scores.affine_head(path, 768)


def test_what_is_missing(saved, seen):
  reader, inputs, *_ = seen
  with pytest.raises(ConfigError, match='there is none: set data.reader'):
    clip_scores.pickscore(None, saved[2])
  reward = clip_scores.pickscore(reader, saved[2])
  with pytest.raises(ConfigError, match=r'texts\.clip="\{prompt\}"'):
    reward.score(reward.params, inputs._replace(info={}), KEY)
