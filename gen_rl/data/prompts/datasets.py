"""Prompts of tensorflow-datasets."""

from collections.abc import Sequence
import functools
from typing import Any

import numpy as np

from gen_rl.data import columns
from gen_rl.data.prompts.source import Prompts
from gen_rl.utils import origins


def tfds(
  name: str,
  split: str = 'train',
  text_field: str = 'caption',
  info_fields: Sequence[str] = (),
  media_field: str | None = None,
  data_dir: str | None = None,
) -> Prompts:
  """Fields of a tensorflow-datasets dataset in array_record format.

  Read by random access through `tfds.data_source`: records are read when they
  are asked for, images that were not asked for are not decoded, and TensorFlow
  is not imported (preparing a dataset may import it). Prompt ids are the
  positions in the split.

  Args:
    name: tfds name, "coco_captions" or "my_dataset/config:1.0.0".
    split: tfds split expression, "train" or "train[:1000]".
    text_field: name of the text feature; "a/b" is field b of feature a; of
      several texts per record the first is taken.
    info_fields: numeric features of one shape each, given as `info`.
    media_field: image feature of one size, given as `media`.
    data_dir: where datasets are kept; None is the tfds default.

  Raises:
    ValueError: unknown dataset, split or field, not random-access, or empty.
  """
  import tensorflow_datasets

  origins.give_up()
  where = f'tfds dataset {name!r}'
  fields = [text_field, *info_fields, *([media_field] if media_field else [])]

  def data_source(decoders=None) -> Any:
    return tensorflow_datasets.data_source(
      name,
      split=split,
      data_dir=data_dir,
      decoders=decoders,
      builder_kwargs={'file_format': 'array_record'},
    )

  try:
    source = data_source()
  except tensorflow_datasets.core.DatasetNotFoundError as e:
    raise ValueError(
      f'{where} is neither known to tensorflow-datasets nor found in'
      f' {data_dir or "its data_dir"}'
    ) from e
  except (NotImplementedError, OSError, ValueError) as e:
    reason = ' '.join(str(e).split())[:300]
    raise ValueError(f'{where} split {split!r} cannot be read: {reason}') from e
  if not len(source):
    raise ValueError(f'{where} split {split!r} is empty')
  for field in fields:
    try:
      columns.Column(source.__getitem__, 1, field)[0]
    except (KeyError, TypeError, IndexError):
      raise ValueError(
        f'{where} has no field {field!r}; it has {", ".join(sorted(source[0]))}'
      ) from None
  # Decoding pictures nobody asked for would cost more than everything else.
  unused = {
    feature: tensorflow_datasets.decode.SkipDecoding()
    for feature, kind in source.dataset_info.features.items()
    if isinstance(kind, tensorflow_datasets.features.Image)
    and feature not in fields
  }
  source = data_source(unused)
  read = functools.lru_cache(256)(source.__getitem__)
  size = len(source)
  return Prompts(
    f'{name}/{split}/{"+".join(fields)}',
    columns.Text(read, size, text_field),
    np.arange(size, dtype=np.int32),
    info={field: columns.Column(read, size, field) for field in info_fields},
    media=columns.Media(read, size, media_field) if media_field else None,
  )
