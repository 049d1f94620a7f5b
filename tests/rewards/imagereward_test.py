"""ImageReward on prompts and pictures: a tiny network, its own tokenizer."""

import jax
import numpy as np
from PIL import Image
import pytest

from configs import base
from gen_rl import build, rewards
from gen_rl.build import ConfigError
from gen_rl.data import feeds, pipeline, tokenizers
from gen_rl.models import blip
from gen_rl.models.files import released
from gen_rl.models.parts import vit
from gen_rl.rewards import imagereward
from gen_rl.types import RewardInputs

CONFIG = dict(
  model_type='bert', hidden_size=12, intermediate_size=20, num_hidden_layers=2,
  num_attention_heads=3, vocab_size=12, max_position_embeddings=8,
  add_cross_attention=True,
)  # fmt: skip
SIZES = dict(image=8, patch=4, width=16, layers=2, heads=2)
WORDS = '[PAD] [UNK] [CLS] [SEP] [MASK] a red cat and dog blue on'.split()


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  """Of the kind of bert-base-uncased, of few words."""
  transformers = pytest.importorskip('transformers')
  folder = tmp_path_factory.mktemp('bert')
  (folder / 'vocab.txt').write_text('\n'.join(WORDS))
  made = transformers.BertTokenizerFast(str(folder / 'vocab.txt'))
  made.save_pretrained(folder)
  return tokenizers.pretrained(str(folder))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  net = blip.image_reward(**SIZES, **blip.config(CONFIG))
  params = jax.jit(net.init)(jax.random.key(0))
  out = tmp_path_factory.mktemp('imagereward')
  released.save(out, params, blip.NAMES, CONFIG)
  return out


def pictures(count=3, size=(12, 15)):
  rng = np.random.default_rng(0)
  return rng.random((count, *size, 3), np.float32)


def read(tokenizer, texts, length=6):
  reader = pipeline.Reader(
    tokenizer, length, dict(imagereward='{prompt}'), truncate=True
  )
  return reader.read(texts)


TEXTS = 'a red cat', 'a blue dog and a red cat on a dog', 'a'


def test_scores(tokenizer, folder):
  """Prompts with their special tokens, cut as the tokenizer cuts them."""
  reward = imagereward.imagereward(tokenizer, folder, sizes=SIZES)
  assert reward.differentiable and reward.where == 'device'
  info = read(tokenizer, TEXTS)
  cls, sep = WORDS.index('[CLS]'), WORDS.index('[SEP]')
  ids = info['imagereward']
  assert ids[0].tolist() == [cls, 5, 6, 7, sep, 0]
  assert ids[1, 0] == cls and ids[1, -1] == sep
  media = pictures()
  score = jax.jit(
    lambda params, media, info: reward.score(
      params, RewardInputs(media, info, 1), jax.random.key(0)
    )
  )
  out = score(reward.params, media, info)
  net, params = blip.load(folder, **SIZES)
  seen = vit.fitted(media, 8, vit.CLIP_MEAN, vit.CLIP_STD)
  want = jax.jit(net.apply)(params, seen, ids)
  np.testing.assert_allclose(out.score, want, atol=1e-5)
  assert np.ptp(want) > 1e-2
  assert out.valid.all()
  # The text counts, and so does the picture.
  other = score(reward.params, media, read(tokenizer, TEXTS[::-1]))
  assert abs(other.score - out.score)[0] > 1e-4
  assert (
    abs(score(reward.params, media[::-1], info).score - out.score)[0] > 1e-4
  )


def test_rounded_pixels_are_pillows(tokenizer, folder):
  """The authors' transform of an 8-bit picture: resized, the middle cut out."""
  reward = imagereward.imagereward(tokenizer, folder, sizes=SIZES, rounded=True)
  whole = np.round(255 * pictures()).astype(np.uint8)
  info = read(tokenizer, TEXTS)
  cut = [
    np.asarray(Image.fromarray(x).resize((10, 8), Image.Resampling.BICUBIC))[
      :, 1:9
    ]
    for x in whole
  ]
  seen = (np.stack(cut) / 255 - vit.CLIP_MEAN) / vit.CLIP_STD
  net, params = blip.load(folder, **SIZES)
  score = jax.jit(
    lambda params, media: (
      reward.score(params, RewardInputs(media, info, 1), None).score
    )
  )
  want = jax.jit(net.apply)(params, np.float32(seen), info['imagereward'])
  got = score(reward.params, np.float32(whole / 255))
  np.testing.assert_allclose(got, want, atol=2e-4)


def test_gradient(tokenizer, folder):
  reward = imagereward.imagereward(tokenizer, folder, sizes=SIZES, remat='full')
  media, info = pictures(), read(tokenizer, TEXTS)
  media[1] = np.nan

  @jax.jit
  def value(media):
    out = reward.score(reward.params, RewardInputs(media, info, 1), None)
    return (out.score * out.valid).sum(), out

  gradient, out = jax.jit(jax.grad(value, has_aux=True))(media)
  assert out.valid.tolist() == [True, False, True]
  assert np.isfinite(gradient).all() and not gradient[1].any()
  along = np.random.default_rng(2).normal(size=media.shape).astype(np.float32)
  up, down = (value(media + s * 1e-2 * along)[0] for s in (1, -1))
  np.testing.assert_allclose(
    (up - down) / 2e-2, (gradient * along).sum(), rtol=0.02, atol=1e-3
  )


def test_bad_input_is_said(tokenizer, folder):
  with pytest.raises(ConfigError, match='there is none: set data.reader'):
    imagereward.imagereward(None, folder)
  other = tokenizer._replace(pad_id=3)
  with pytest.raises(ConfigError, match='one that pads with 3'):
    imagereward.imagereward(other, folder)
  reward = imagereward.imagereward(tokenizer, folder, sizes=SIZES)
  with pytest.raises(ConfigError, match='data.reader.texts.imagereward='):
    reward.score(reward.params, RewardInputs(pictures(), {}, 1), None)


def test_named_in_a_config(tokenizer, folder):
  """As a run reads prompts for it and builds it."""
  config = base.get_config()
  config.data.reader = dict(
    tokenizer=dict(name='pretrained', path=tokenizer.backend.name_or_path),
    length=6, texts=dict(imagereward='{prompt}'), truncate=True,
  )  # fmt: skip
  reader = feeds.reader(config)
  found = reader.read(TEXTS)['imagereward']
  np.testing.assert_array_equal(found, read(tokenizer, TEXTS)['imagereward'])
  spec = dict(name='imagereward', folder=str(folder), sizes=SIZES)
  made = build.build(rewards, spec, reader=reader.tokenizer)
  assert made.name == 'imagereward'
  config.data.reader.truncate = False
  with pytest.raises(ValueError, match='12 tokens but the limit is 6'):
    feeds.reader(config).read(TEXTS)
