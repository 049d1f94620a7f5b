"""ShapesWorld as a tensorflow-datasets builder: pictures with captions.

Splits are those of the grammar ("train", "rl", "heldout"), so a picture of a
held-out combination is in "heldout" only. Example i of a split draws its
prompt and its picture from fold_in(fold_in(key(seed), split), i): the data do
not depend on the number of examples or on how they are written.

  python -m gen_rl.data.shapes_tfds --data_dir=... [--examples=train:20000]

writes array_record files (tfds needs TensorFlow for that).

  tfds.data_source('shapes_world', split='train', data_dir=...)

then reads them by random access and without TensorFlow, and so does
`prompts.tfds('shapes_world', 'train', 'caption')`.
"""

import zlib

from absl import app, flags
from etils import epath
import jax
import numpy as np
import tensorflow_datasets as tfds

from gen_rl.worlds import shapes_world, world

_WORLD = shapes_world.shapes()
_RENDER_CHUNK = 256  # pictures rendered by one call


@jax.jit
def _render(root, index, spec):
  """Pictures [b 24 24 3] in [0, 1] of specs [b ...]; b keys from `index`."""
  keys = jax.vmap(jax.random.fold_in, (None, 0))(root, index)
  return jax.vmap(_WORLD.render)(keys, spec)


def examples(split: str, count: int, seed: int = 0):
  """Yields (index, {"image", "caption", "prompt_id", **spec}), `count` times.

  A task is drawn first, then a prompt of it, both uniformly: the colour
  attribution task alone has more sentences than the six others together.

  Args:
    split: of the world, or several joined by "+".
    count: number of examples.
    seed: of the pictures and the choice of prompts.

  Yields:
    image uint8 [24 24 3], caption text, and what it says, int32 arrays.
  """
  prompts = world.chosen(_WORLD, split)
  by_task = [
    [prompt for prompt in prompts if prompt.task == task]
    for task in _WORLD.tasks
  ]
  by_task = [of_task for of_task in by_task if of_task]
  stream = zlib.crc32(split.encode())
  root = jax.random.fold_in(jax.random.key(seed), stream)
  for start in range(0, count, _RENDER_CHUNK):
    index = np.arange(start, start + _RENDER_CHUNK)
    chosen = []
    for i in index:
      rng = np.random.default_rng((seed, stream, int(i)))
      of_task = by_task[rng.integers(len(by_task))]
      chosen.append(of_task[rng.integers(len(of_task))])
    media = np.asarray(_render(root, index, world.columns(chosen)))
    images = np.round(media * 255).astype(np.uint8)
    for row in range(min(_RENDER_CHUNK, count - start)):
      yield (
        start + row,
        {
          'image': images[row],
          'caption': chosen[row].text,
          'prompt_id': np.int32(chosen[row].prompt_id),
          **chosen[row].facts,
        },
      )


class ShapesWorld(tfds.core.GeneratorBasedBuilder):
  """Pictures of up to four objects or one short word, with exact captions.

  `counts` is the number of examples of every split and `seed` that of the
  pictures; both matter when the files are written, not when they are read.
  """

  VERSION = tfds.core.Version('1.0.0')
  # Where tfds looks for metadata beside the code. Its own way of finding out
  # imports importlib_resources, which it does not declare (4.9.10).
  code_path = epath.Path(__file__)

  def __init__(self, *, counts=None, seed: int = 0, **kwargs):
    kwargs.setdefault('file_format', 'array_record')
    self._counts = counts or {'train': 20_000, 'rl': 2_000, 'heldout': 2_000}
    self._seed = seed
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    feature = tfds.features
    facts = world.chosen(_WORLD, 'train')[0].facts
    return tfds.core.DatasetInfo(
      builder=self,
      description=(self.__doc__ or '').strip(),
      features=feature.FeaturesDict(
        {
          'image': feature.Image(shape=_WORLD.shape),
          'caption': feature.Text(),
          'prompt_id': np.int32,
          **{
            name: feature.Tensor(shape=np.shape(value), dtype=np.int32)
            for name, value in facts.items()
          },
        }
      ),
      supervised_keys=('caption', 'image'),
      disable_shuffling=True,  # examples are independent draws already
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing is downloaded
    return {
      split: examples(split, count, self._seed)
      for split, count in self._counts.items()
    }

  def _generate_examples(self, split, count):
    return examples(split, count, self._seed)


_DATA_DIR = flags.DEFINE_string(
  'data_dir', None, 'Where to write; tfds default.'
)
_EXAMPLES = flags.DEFINE_list(
  'examples', ['train:20000', 'rl:2000', 'heldout:2000'], 'split:count, ...'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the pictures.')


def main(argv):
  """Writes the dataset."""
  del argv
  pairs = (item.split(':') for item in _EXAMPLES.value)
  builder = ShapesWorld(
    counts={split: int(count) for split, count in pairs},
    seed=_SEED.value,
    data_dir=_DATA_DIR.value,
  )
  builder.download_and_prepare()
  print(builder.info)


if __name__ == '__main__':
  app.run(main)
