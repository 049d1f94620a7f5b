"""What a released config may hold, whatever stands in it."""

import pytest

from gen_rl.models import (
  clip,
  convert,
  dinov2,
  flow_files,
  flux,
  mmdit_files,
  siglip,
  t5,
  unet_files,
  vae,
  wan,
)
from gen_rl.models.files import options

NONSENSE = (
  'x', None, -1, 0, [], {}, 1.5, True, [None], float('nan'), 10**30,
)  # fmt: skip
UNET = dict(
  channels=(32, 64), transformers=(True, False), heads=8, depth=1, blocks=2,
  text=32, linear=False, groups=32, eps=1e-5, guidance_width=None,
)  # fmt: skip
GOOD = {
  'mmdit': (mmdit_files.config, mmdit_files.config_json(dict(
    patch=2, channels=16, layers=3, heads=2, head_dim=8, dual=(0,),
    qk_norm=True, text=32, pooled=24, grid=8, sample_size=8,
  ))),
  'flux': (flux.config, flux.config_json(dict(
    channels=16, double=2, single=2, heads=2, head_dim=8, turns=(2, 2, 4),
    text=32, pooled=24, guided=True,
  ))),
  'wan': (wan.config, wan.config_json(dict(
    channels=16, patch=(1, 2, 2), layers=2, heads=2, head_dim=8, mlp=32,
    text=32,
  ))),
  'unet': (
    lambda found: unet_files.sizes(**unet_files.config(found)),
    unet_files.config_json(unet_files.sizes((8, 8, 4), **UNET), (8, 8, 4)),
  ),
  'vae': (vae.config, dict(
    block_out_channels=[8, 16], down_block_types=['DownEncoderBlock2D'] * 2,
    up_block_types=['UpDecoderBlock2D'] * 2, layers_per_block=1,
    latent_channels=16, norm_num_groups=4, sample_size=16,
  )),
  'clip': (clip.config, dict(
    architectures=['CLIPTextModel'], hidden_size=8, num_hidden_layers=2,
    num_attention_heads=2, intermediate_size=16, hidden_act='gelu',
    layer_norm_eps=1e-5, vocab_size=80, max_position_embeddings=77,
    eos_token_id=2,
  )),
  't5': (t5.config, dict(
    d_model=8, num_layers=2, num_heads=2, d_kv=4, d_ff=16, vocab_size=120,
    feed_forward_proj='gated-gelu', layer_norm_epsilon=1e-6,
  )),
  'siglip': (siglip.config, dict(
    model_type='siglip_vision_model', hidden_size=8, num_hidden_layers=2,
    num_attention_heads=2, intermediate_size=16, image_size=12, patch_size=4,
  )),
  'dinov2': (dinov2.config, dict(
    model_type='dinov2', hidden_size=8, num_hidden_layers=2,
    num_attention_heads=2, image_size=28, patch_size=7,
  )),
  'lm': (convert.lm_config, dict(
    model_type='qwen2', vocab_size=80, hidden_size=16, num_hidden_layers=2,
    num_attention_heads=2, intermediate_size=32, num_key_value_heads=1,
  )),
  'flow': (lambda found: flow_files.config(found, 16), dict(
    _class_name='FlowMatchEulerDiscreteScheduler', shift=3.0,
    use_dynamic_shifting=True, base_shift=0.5, time_shift_type='linear',
  )),
  'ddpm': (unet_files.process, dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule='linear',
    num_train_timesteps=1000, prediction_type='epsilon',
  )),
}  # fmt: skip


@pytest.mark.parametrize('name', GOOD)
def test_nonsense_is_read_or_refused_in_a_sentence(name):
  read, good = GOOD[name]
  read(good)
  for option in good:
    for value in NONSENSE:
      try:
        read(good | {option: value})
      except ValueError as error:
        assert '\n' not in str(error)


# Those of schedulers are mostly of samplers.
@pytest.mark.parametrize('name', sorted({*GOOD} - {'flow', 'ddpm'}))
def test_options_that_nobody_knows(name):
  read, good = GOOD[name]
  with pytest.raises(
    ValueError, match='brand_new_option=7, an option that is '
  ):
    read(good | dict(brand_new_option=7))
  if name in ('clip', 't5', 'siglip', 'dinov2', 'lm'):  # by any release
    old = dict(torch_dtype='float16', num_beams=1, pruned_heads={}, top_p=1.0)
    assert read(good | old) == read(good)


def test_kinds_of_options():
  wrong = dict(a=True, b=[1, 0], c=[], d=1, e=float('nan'), f=['x', 1], g=3)
  with pytest.raises(ValueError) as error:
    options.typed(
      'thing', wrong, whole=('a', 'g', 'absent'), wholes=('b',), each=('c',),
      places=('d',), fraction=('e',), names=('f',),
    )  # fmt: skip
  assert str(error.value) == (
    'the config of this thing has '
    'a=True, where it is a whole number above 0; '
    'b=[1, 0], where it is a list of whole numbers above 0; '
    'c=[], where it is a whole number above 0, or a list of them; '
    'd=1, where it is a list of whole numbers; '
    'e=nan, where it is a number between 0 and 1; '
    "f=['x', 1], where it is a list of names"
  )
