"""Linen networks, each wrapped as pure functions.

`parts` is what they are made of, `files` how others keep their weights.
"""

import sys

from gen_rl.models.files import (
  adapter_files,
  folders,
  options,
  peft,
  pickles,
  released,
  weights,
)
from gen_rl.models.parts import adaln, decoder, layers, lora, resnet, vit

BUILDS = ('Net', 'TokenNet', 'MaskNet', 'Detector', 'Codec', 'VAE')

# Programs that know them as modules of this package, as they were, go on.
_MOVED = (
  adapter_files, folders, options, peft, pickles, released, weights,
  adaln, decoder, layers, lora, resnet, vit,
)  # fmt: skip
for _module in _MOVED:
  _name = _module.__name__.rpartition('.')[2]
  sys.modules.setdefault(f'{__name__}.{_name}', _module)
