"""Scores of CLIP models against torch: pictures and texts as they come."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import flow_grpo
from gen_rl import assemble, initial, testing
from gen_rl.build import ConfigError
from gen_rl.data import feeds, tokenizers
from gen_rl.models import open_clip
from gen_rl.models.files.weights import WeightsError
from gen_rl.models.parts import vit
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
  """(what rewards are given, their tokens, their pixels, pixels of HPS)."""
  _, tokenizer, folder = saved
  rng = np.random.default_rng(0)
  # Smooth pictures with hard edges in them, of another size: resized to 24x31,
  # so that the middle begins at half a pixel.
  small = rng.uniform(size=(4, 6, 9, 3))
  big = np.array(jax.image.resize(small, (4, 40, 52, 3), 'cubic'))
  big[:, 10:30, 20:40] = (
    rng.integers(0, 2, (4, 5, 5, 3)).repeat(4, 1).repeat(4, 2)
  )
  whole = np.round(255 * np.clip(big, 0, 1)).astype(np.uint8)
  reader = tokenizers.pretrained(folder)
  ids = np.repeat(reader.encode(TEXTS, 77), G, 0)
  inputs = RewardInputs(
    jnp.asarray(whole / 255, jnp.float32),
    dict(clip=jnp.asarray(ids), hps=jnp.asarray(ids)),
    G,
  )
  processor = transformers.CLIPImageProcessor(
    size=dict(shortest_edge=SIDE), crop_size=dict(height=SIDE, width=SIDE)
  )
  pixels = processor(list(whole), return_tensors='pt').pixel_values
  theirs = tokenizer(
    [t for t in TEXTS for _ in range(G)], padding='max_length', max_length=77,
    return_tensors='pt',
  ).input_ids  # fmt: skip
  return reader, inputs, theirs, pixels, whole_pictures(whole)


def whole_pictures(whole):
  """HPS v2's transform: ToTensor, the long side resized, padded, normalised."""
  x = torch.from_numpy(whole).permute(0, 3, 1, 2) / 255
  size = [round(n * SIDE / max(x.shape[2:])) for n in x.shape[2:]]
  x = torch.nn.functional.interpolate(
    x, size, mode='bicubic', align_corners=False, antialias=True
  )
  h, w = (SIDE - n for n in size)
  x = torch.nn.functional.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2))
  mean, std = (
    torch.tensor(n).reshape(3, 1, 1) for n in (vit.CLIP_MEAN, vit.CLIP_STD)
  )
  return (x - mean) / std


def cosine(model, ids, pixels):
  with torch.no_grad():
    out = model(input_ids=ids, pixel_values=pixels)
    x = out.image_embeds / out.image_embeds.norm(dim=-1, keepdim=True)
    y = out.text_embeds / out.text_embeds.norm(dim=-1, keepdim=True)
  return (x * y).sum(-1).numpy()


def scores(reward, inputs):
  out = jax.jit(lambda p, x: reward.score(p, inputs.replace(media=x), KEY))(
    reward.params, inputs.media
  )
  assert out.valid.all()
  return np.asarray(out.score)


def test_scores(saved, seen):
  model, _, folder = saved
  reader, inputs, ids, pixels, framed = seen
  want = cosine(model, ids, pixels)
  whole = cosine(model, ids, framed)
  assert np.ptp(want) > 0.1 and np.abs(want - whole).max() > 0.01
  make = functools.partial(clip_scores.clip_score, reader, folder, rounded=True)
  # Sums that end at half a level are rounded either way: a pixel in a thousand.
  for reward, value, atol in (
    (make(), want, 2e-4),
    (make(w=2.5, floor=True), 2.5 * np.maximum(want, 0), 5e-4),
    (
      clip_scores.pickscore(reader, folder, rounded=True),
      np.exp(3.0) * want / 26,
      2e-4,
    ),
    (clip_scores.hps(reader, folder), whole, 1e-5),
    (clip_scores.hps(reader, folder, rounded=True), whole, 1e-5),
  ):
    np.testing.assert_allclose(scores(reward, inputs), value, atol=atol)


def test_what_rounding_to_8_bits_does(saved, seen):
  """Without it, scores differ by a few hundredths of their deviation."""
  model, _, folder = saved
  reader, inputs, ids, pixels, _ = seen
  want = cosine(model, ids, pixels)
  got = scores(clip_scores.clip_score(reader, folder), inputs)
  far = np.abs(got - want).max() / want.std()
  assert 1e-4 < far < 0.05, far


def test_gradients_reach_the_pixels(saved, seen):
  _, _, folder = saved
  reader, inputs, *_ = seen
  for reward in (
    clip_scores.pickscore(reader, folder),
    clip_scores.pickscore(reader, folder, rounded=True),
    clip_scores.hps(reader, folder),
    clip_scores.pickscore(reader, 'drawn'),
    clip_scores.aesthetic('drawn'),
  ):
    assert reward.differentiable

    def total(media, reward=reward):
      return reward.score(
        reward.params, inputs.replace(media=media), KEY
      ).score.sum()

    dx = jax.jit(jax.grad(total))(inputs.media)
    assert jnp.isfinite(dx).all() and float(jnp.abs(dx).max()) > 1e-6


def test_broken_pictures_are_not_valid(seen):
  reader, inputs, *_ = seen
  media = inputs.media.at[1, 3, 3].set(jnp.nan)
  for reward in (
    clip_scores.hps(reader, 'drawn'),
    clip_scores.aesthetic('drawn'),
  ):
    out = jax.jit(
      lambda p, x, r=reward: r.score(p, inputs.replace(media=x), KEY)
    )(reward.params, media)
    np.testing.assert_array_equal(out.valid, [True, False, True, True])
    assert jnp.isfinite(out.score).all()


class Residual(torch.nn.Module):
  """A block of open_clip, named as there, of torch's own attention."""

  def __init__(self, width, heads):
    super().__init__()
    self.ln_1, self.ln_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
    self.attn = torch.nn.MultiheadAttention(width, heads, batch_first=True)
    self.mlp = torch.nn.Sequential(collections.OrderedDict(
      c_fc=torch.nn.Linear(width, 40), gelu=torch.nn.GELU(),
      c_proj=torch.nn.Linear(40, width),
    ))  # fmt: skip

  def forward(self, x, mask=None):
    h = self.ln_1(x)
    x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
    return x + self.mlp(self.ln_2(x))


class Transformer(torch.nn.Module):
  def __init__(self, width, heads):
    super().__init__()
    blocks = [Residual(width, heads) for _ in range(2)]
    self.resblocks = torch.nn.ModuleList(blocks)

  def forward(self, x, mask=None):
    for block in self.resblocks:
      x = block(x, mask)
    return x


class Visual(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.conv1 = torch.nn.Conv2d(3, 32, 8, 8, bias=False)
    self.class_embedding = torch.nn.Parameter(torch.zeros(32))
    self.positional_embedding = torch.nn.Parameter(torch.zeros(10, 32))
    self.ln_pre, self.ln_post = torch.nn.LayerNorm(32), torch.nn.LayerNorm(32)
    self.transformer = Transformer(32, 4)
    self.proj = torch.nn.Parameter(torch.zeros(32, 16))

  def forward(self, pixels):
    x = self.conv1(pixels).flatten(2).transpose(1, 2)
    first = self.class_embedding.expand(len(x), 1, -1)
    x = self.ln_pre(torch.cat([first, x], 1) + self.positional_embedding)
    return self.ln_post(self.transformer(x)[:, 0]) @ self.proj


class OpenClip(torch.nn.Module):
  """CLIP with open_clip's names; its outputs are open_clip 3.3's."""

  def __init__(self):
    super().__init__()
    self.visual = Visual()
    self.token_embedding = torch.nn.Embedding(80, 24)
    self.positional_embedding = torch.nn.Parameter(torch.zeros(77, 24))
    self.transformer = Transformer(24, 3)
    self.ln_final = torch.nn.LayerNorm(24)
    self.text_projection = torch.nn.Parameter(torch.zeros(24, 16))
    self.logit_scale = torch.nn.Parameter(torch.zeros(()))
    mask = torch.full((77, 77), -torch.inf).triu(1)
    self.register_buffer('attn_mask', mask)

  def forward(self, ids, pixels):
    x = self.token_embedding(ids) + self.positional_embedding
    x = self.ln_final(self.transformer(x, self.attn_mask))
    y = x[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection
    return torch.cosine_similarity(self.visual(pixels), y)


@pytest.mark.parametrize('above', ['', 'module.'])
def test_hps_from_a_file_of_open_clip(saved, seen, tmp_path, randomize, above):
  reader, inputs, ids, _, framed = seen
  model = randomize(OpenClip())
  state = {f'{above}{n}': x for n, x in model.state_dict().items()}
  path = str(tmp_path / 'HPS.pt')
  torch.save(dict(epoch=1, state_dict=state), path)
  with torch.no_grad():
    want = model(ids, framed).numpy()
  assert np.ptp(want) > 0.1
  heads = dict(text_head=8, vision_head=8)
  for scan in (False, True):
    reward = clip_scores.hps(reader, path, scan=scan, **heads)
    np.testing.assert_allclose(scores(reward, inputs), want, atol=2e-5)
  torch.save(dict(a=torch.ones(2)), path)
  with pytest.raises(WeightsError, match='no CLIP of open_clip'):
    open_clip.load(path)


def test_aesthetic(saved, seen, tmp_path):
  model, _, folder = saved
  _, inputs, _, pixels, _ = seen
  torch.manual_seed(0)
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
  assert want.std() > 1e-3
  reward = clip_scores.aesthetic(folder, path, rounded=True)
  np.testing.assert_allclose(scores(reward, inputs), want, atol=1e-5)
  with pytest.raises(ConfigError, match='it needs both'):
    clip_scores.aesthetic(folder)
  with pytest.raises(WeightsError, match=r'layers\.0\.weight is float'):
    clip_scores.affine_head(path, 768)


@pytest.fixture
def config(saved):
  """The main job, with PickScore of a folder as its only reward."""
  folder = saved[2]
  c = flow_grpo.get_config('tiny')
  c.trainable = ''  # where nothing is trained yet, prompts have no gradient
  c.objective.kl.weight, c.microbatches = 0.0, 1  # less to compile
  c.rewards = dict(pickscore=dict(name='pickscore', folder=folder, weight=1.0))
  c.data.reader = dict(
    tokenizer=dict(name='pretrained', path=folder), length=77,
    texts=dict(clip='{prompt}'), truncate=True,
  )  # fmt: skip
  return c


def test_one_step_of_a_run(saved, config):
  """A config that names a folder, its prompts, one step in its two halves."""
  model, tokenizer, _ = saved
  built = assemble.setup(config)
  layout = assemble.make_layout(config, built, jax.devices()[:1])
  step, tx, advantage = assemble.make_step(config, built, layout)
  params = testing.drawn(initial.shapes(config, built.policy))
  state = initial.state(config, built, params, tx, advantage)
  batch, texts = next(feeds.training(config, built))
  key = jax.random.key(config.seed)
  # The rewards of the rollout are those of its pictures and its prompts.
  traj, inputs, outs = jax.jit(step.sample)(state, batch, key)
  group = config.data.group_size
  ids = tokenizer(
    [t for t in texts for _ in range(group)], padding='max_length',
    max_length=77, truncation=True, return_tensors='pt',
  ).input_ids  # fmt: skip
  seen = vit.fitted(inputs.media, SIDE, vit.CLIP_MEAN, vit.CLIP_STD, floor=True)
  pixels = torch.from_numpy(np.array(seen)).permute(0, 3, 1, 2)
  want = np.exp(3.0) * cosine(model, ids, pixels) / 26
  assert want.std() > 1e-3 and outs['pickscore'].valid.all()
  np.testing.assert_allclose(outs['pickscore'].score, want, atol=1e-5)
  _, logged = step.learn(state, traj, inputs, outs, key)
  np.testing.assert_allclose(logged['reward/pickscore'], want.mean(), atol=1e-5)
  assert logged['optim/skipped'] == 0 and logged['optim/grad_norm'] > 0


def test_prompts_that_are_too_long(saved, config):
  """They are cut if the config says so, as Flow-GRPO does, and refused else."""
  _, tokenizer, _ = saved
  long = 'a red square ' * 20
  want = tokenizer([long], max_length=77, truncation=True)['input_ids']
  np.testing.assert_array_equal(feeds.reader(config).read([long])['clip'], want)
  config.data.reader.truncate = False
  with pytest.raises(ValueError, match='tokens but the limit is 77'):
    feeds.reader(config).read([long])


def test_what_is_missing(saved, seen):
  reader, inputs, *_ = seen
  with pytest.raises(ConfigError, match='there is none: set data.reader'):
    clip_scores.pickscore(None, saved[2])
  # Tokenizers of other models: BERT's kind has no end, T5's another one.
  for other in (
    reader._replace(end_id=None), reader._replace(end_id=1),
    reader._replace(size=81, end_id=80),
  ):  # fmt: skip
    with pytest.raises(ConfigError, match='it is to be the tokenizer of CLIP'):
      clip_scores.pickscore(other, saved[2])
  for make, text in (
    (clip_scores.pickscore, r'clip="\{prompt\}"'),
    (clip_scores.hps, r'hps="\{cleaned\}"'),
  ):
    reward = make(reader, saved[2])
    with pytest.raises(ConfigError, match=rf'texts\.{text}'):
      reward.score(reward.params, inputs.replace(info={}), KEY)
