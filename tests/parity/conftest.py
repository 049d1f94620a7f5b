"""Folders of pipelines as diffusers writes them: tiny, every tensor drawn."""

import json
import string

import numpy as np
import pytest


def _randomize(model, seed=0):
  """Numbers of numpy in every tensor; scales of norms around one."""
  import torch  # noqa: PLC0415 - an extra

  rng = np.random.default_rng(seed)
  with torch.no_grad():
    for name, x in sorted(model.named_parameters()):
      noise = torch.from_numpy(np.asarray(rng.normal(size=x.shape))).float()
      if x.ndim > 1 and 'embedding' not in name:
        noise = noise / np.sqrt(np.prod(x.shape[1:]))
      scale = 'norm' in name and name.endswith('weight') and x.ndim == 1
      x.copy_(1 + 0.3 * noise if scale else noise if x.ndim > 1 else noise / 5)
  return model.eval()


def _clip_tokenizer(folder, pad):
  """CLIP's kind, of letters: 'a' inside of a word, 'a</w>' at its end."""
  from transformers import CLIPTokenizer  # noqa: PLC0415 - slow

  letters = string.ascii_lowercase + string.digits + '!,.'
  ends = '<|startoftext|>', '<|endoftext|>'
  words = [*letters, *(f'{x}</w>' for x in letters), *ends]
  folder.mkdir()
  (folder / 'vocab.json').write_text(
    json.dumps({word: i for i, word in enumerate(words)})
  )
  (folder / 'merges.txt').write_text('#version: 0.2\n')
  return CLIPTokenizer(
    str(folder / 'vocab.json'), str(folder / 'merges.txt'), pad_token=pad,
    model_max_length=77,
  )  # fmt: skip


def t5_tokenizer(length):
  """T5's kind, of letters."""
  from transformers import T5TokenizerFast  # noqa: PLC0415 - slow

  letters = string.ascii_lowercase + string.digits + '!,.'
  pieces = [
    '<pad>',
    '</s>',
    '<unk>',
    '▁',
    *letters,
    *(f'▁{x}' for x in letters),
  ]
  return T5TokenizerFast(
    vocab=[(piece, -float(i % 7)) for i, piece in enumerate(pieces)],
    extra_ids=0, model_max_length=length,
  )  # fmt: skip


def _clip(width, projection, act):
  import transformers  # noqa: PLC0415

  return transformers.CLIPTextModelWithProjection(
    transformers.CLIPTextConfig(
      vocab_size=80, hidden_size=width, intermediate_size=2 * width,
      num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=77,
      projection_dim=projection, hidden_act=act, eos_token_id=2,
    )
  )  # fmt: skip


def _t5(width):
  import transformers  # noqa: PLC0415

  return transformers.T5EncoderModel(
    transformers.T5Config(
      vocab_size=120, d_model=width, d_kv=8, d_ff=40, num_layers=2, num_heads=2,
      feed_forward_proj='gated-gelu',
    )
  )  # fmt: skip


@pytest.fixture(scope='session')
def randomize():
  """(model, seed=0) -> the model with numbers of numpy in every tensor."""
  return _randomize


@pytest.fixture(scope='session')
def clip_tokenizer():
  """(folder to make, padding) -> a tokenizer of CLIP's kind, of letters."""
  return _clip_tokenizer


@pytest.fixture(scope='session')
def sd3_pipeline(tmp_path_factory):
  """(StableDiffusion3Pipeline, the folder it was saved in)."""
  diffusers = pytest.importorskip('diffusers')
  torch = pytest.importorskip('torch')
  torch.set_num_threads(1)
  root = tmp_path_factory.mktemp('sd3_pipeline')
  transformer = diffusers.SD3Transformer2DModel(
    sample_size=8, patch_size=2, in_channels=16, num_layers=3,
    attention_head_dim=8, num_attention_heads=2, joint_attention_dim=32,
    caption_projection_dim=16, pooled_projection_dim=18, out_channels=16,
    pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm='rms_norm',
  )  # fmt: skip
  vae = diffusers.AutoencoderKL(
    down_block_types=['DownEncoderBlock2D'] * 2,
    up_block_types=['UpDecoderBlock2D'] * 2, block_out_channels=(8, 16),
    layers_per_block=1, latent_channels=16, norm_num_groups=4,
    scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False,
    use_post_quant_conv=False, sample_size=16,
  )  # fmt: skip
  parts = dict(
    transformer=transformer, vae=vae, text_encoder=_clip(8, 8, 'quick_gelu'),
    text_encoder_2=_clip(16, 10, 'gelu'), text_encoder_3=_t5(32),
  )  # fmt: skip
  pipeline = diffusers.StableDiffusion3Pipeline(
    **{n: _randomize(x, i) for i, (n, x) in enumerate(parts.items())},
    scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    tokenizer=_clip_tokenizer(root / 'a', '<|endoftext|>'),
    tokenizer_2=_clip_tokenizer(root / 'b', '!'),
    tokenizer_3=t5_tokenizer(64),
  )
  pipeline.set_progress_bar_config(disable=True)
  pipeline.save_pretrained(root / 'pipeline')
  return pipeline, root / 'pipeline'
