"""Features of prompts against the pipelines that use them."""

import functools
import os
import pathlib
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl.data import embeddings, text_features, tokenizers

torch = pytest.importorskip('torch')

TEXTS = ['a red square', 'two', 'a photo of 3 blue circles, and one cube.', '']


def far(found, want):
  want = want.detach().float().numpy()
  assert found.shape == want.shape
  return np.abs(np.float32(found) - want).max() / np.abs(want).max()


@functools.cache
def encoded(folder, use_t5=True):
  """(the encoder of Stable Diffusion 3, its features of TEXTS)."""
  encoder = text_features.sd3_text(
    str(folder), t5_length=40, use_t5=use_t5, dtype='float32', chunk=3, width=32
  )
  return encoder, encoder.encode(TEXTS)


@pytest.mark.parametrize('use_t5', [True, False])
def test_sd3(sd3_pipeline, use_t5):
  pipeline, folder = sd3_pipeline
  encoder, made = encoded(folder, use_t5)
  whole = pipeline.text_encoder_3
  try:
    if not use_t5:
      pipeline.text_encoder_3 = None
    with torch.no_grad():
      text, _, pooled, _ = pipeline.encode_prompt(
        TEXTS, None, None, max_sequence_length=40,
        do_classifier_free_guidance=False,
      )  # fmt: skip
  finally:
    pipeline.text_encoder_3 = whole
  assert far(made['text'], text) < 1e-5
  assert far(made['pooled'], pooled) < 1e-5
  assert {n: (x.shape[1:], x.dtype) for n, x in made.items()} == {
    n: (x.shape, x.dtype) for n, x in encoder.shapes.items()
  }


def test_long_prompts(sd3_pipeline):
  pipeline, folder = sd3_pipeline
  long = ['short', 'many words ' * 20]
  strict = text_features.sd3_text(str(folder), t5_length=40, dtype='float32')
  with pytest.raises(
    ValueError, match=r"'many words .* the limit is 77;.*trunc"
  ):
    strict.check(long)
  strict.check(['short'])
  loose = text_features.sd3_text(
    str(folder), truncate=True, t5_length=40, dtype='float32'
  )
  loose.check(long)
  with torch.no_grad():
    text, _, pooled, _ = pipeline.encode_prompt(
      long, None, None, max_sequence_length=40,
      do_classifier_free_guidance=False,
    )  # fmt: skip
  made = loose.encode(long)
  assert far(made['text'], text) < 1e-5
  assert far(made['pooled'], pooled) < 1e-5


def test_another_encoder_has_another_identity(sd3_pipeline):
  _, folder = sd3_pipeline
  one = text_features.sd3_text(str(folder), t5_length=40)
  assert (
    one.identity == text_features.sd3_text(str(folder), t5_length=40).identity
  )
  others = [
    text_features.sd3_text(str(folder), t5_length=41),
    text_features.sd3_text(str(folder), t5_length=40, use_t5=False),
    text_features.sd3_text(str(folder), t5_length=40, dtype='float32'),
    text_features.sd3_text('', t5_length=40),
  ]
  assert len({one.identity, *(x.identity for x in others)}) == 5


@pytest.mark.parametrize(
  'part, other', [('tokenizer', 'tokenizer_3'), ('tokenizer_3', 'tokenizer')]
)
def test_the_tokenizer_of_another_encoder(sd3_pipeline, tmp_path, part, other):
  folder = tmp_path / 'pipeline'
  shutil.copytree(sd3_pipeline[1], folder)
  shutil.rmtree(folder / part)
  shutil.copytree(folder / other, folder / part)
  strict = text_features.sd3_text(str(folder), t5_length=40, dtype='float32')
  with pytest.raises(ValueError, match=f'/{part} has .* another tokenizer'):
    strict.check(['a red square'])


@pytest.mark.parametrize('name', ['sd15_text', 'sd3_text', 'flux_text'])
def test_without_a_folder_features_are_drawn(name):
  encoder = getattr(text_features, name)('', dtype='bfloat16')
  a, b = (encoder.encode(x) for x in (['one', 'two'], ['two']))
  for key, x in encoder.shapes.items():
    assert a[key].shape == (2, *x.shape) and a[key].dtype == jnp.bfloat16
    np.testing.assert_array_equal(a[key][1], b[key][0])
    assert not np.array_equal(a[key][0], a[key][1])
  rows = embeddings.cached(encoder).rows(['one'])
  assert set(rows) == {*encoder.shapes, *(f'null_{n}' for n in encoder.shapes)}


def test_other_weights_have_features_of_their_own(sd3_pipeline, tmp_path):
  copy = tmp_path / 'copy'
  shutil.copytree(sd3_pipeline[1], copy)
  one, same = (
    text_features.sd3_text(str(folder), t5_length=40)
    for folder in (sd3_pipeline[1], copy)
  )
  assert one.weights() == same.weights()
  path = copy / 'text_encoder_3' / 'model.safetensors'
  data = bytearray(path.read_bytes())
  data[-8:] = bytes(8)  # of the last number of the last tensor
  path.write_bytes(data)
  assert one.weights() != same.weights()


_OVER_DEVICES = """
import sys
import types
import jax
import numpy as np
from gen_rl import sharding
from gen_rl.data import text_features, text_networks

folder, out = sys.argv[1:]
ids = np.load(out)
# To import transformers takes longer than all the rest.
text_features._tokenizer = lambda folder, end: types.SimpleNamespace(
  encode=lambda texts, length, truncate: ids['ids' + end]
)
encoder = text_features.sd3_text(
  folder, t5_length=40, dtype='float32', chunk=3
)
before = jax.live_arrays()
# Where a run encodes: inside the scope of its mesh, which may be of others.
run = sharding.Layout(sharding.make_mesh(2, 1, 2, jax.devices()[:4]))
with run.scope():
  made = encoder.encode([''] * 4)
held = [x for x in jax.live_arrays() if x not in before]
devices = dict.fromkeys(jax.devices(), 0)
for x in held:
  # Matrices are split, all but T5's table of distances.
  parts = 8 if x.ndim == 2 and x.shape != (32, 2) else 1
  for shard in x.addressable_shards:
    assert shard.data.size == x.size // parts, x.shape
    devices[shard.device] += shard.data.nbytes
(each,) = set(devices.values())
assert each == text_networks.device_bytes(encoder.networks(), jax.devices())
whole = sum(x.nbytes for x in held)
count = len(jax.tree.leaves([net.like for net in encoder.networks()]))
assert len(held) == count and each < 0.2 * whole, (len(held), each, whole)
del held, x, shard
encoder.free()
assert len(jax.live_arrays()) == len(before)
np.savez(out, **made)
"""


def test_over_eight_devices(sd3_pipeline, tmp_path):
  """Each holds its part; what is computed is the same; all of it is freed."""
  folder, out = sd3_pipeline[1], tmp_path / 'features.npz'
  ids = {
    f'ids{end}': tokenizers.pretrained(folder / f'tokenizer{end}').encode(
      TEXTS, length
    )
    for end, length in (('', 77), ('_2', 77), ('_3', 40))
  }
  np.savez(out, **ids)
  flags = os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=8'
  subprocess.run(
    [sys.executable, '-c', _OVER_DEVICES, folder, out],
    check=True,
    cwd=pathlib.Path(__file__).parents[2],
    env=os.environ | dict(XLA_FLAGS=flags, JAX_PLATFORMS='cpu'),
  )
  for name, x in encoded(folder)[1].items():
    np.testing.assert_allclose(np.load(out)[name], x, atol=1e-5)
