"""Options of released configs: those that are computed, and the others.

A config says how a network computes, and most of what it may say is computed by
few. What a module here does not compute has to be refused before a weight is
read, as the tensors of two options often have the same names and shapes.
"""

from collections.abc import Callable, Collection, Mapping
import reprlib
from typing import Any

from gen_rl.build import ConfigError

# What the config of any model of transformers may say, of its releases so far,
# and that changes no number of a forward pass: names, training, generation.
GENERAL = frozenset(
  """
  add_cross_attention auto_map architectures attention_dropout
  attention_probs_dropout_prob attn_implementation bad_words_ids
  begin_suppress_tokens bos_token_id chunk_size_feed_forward
  classifier_dropout cross_attention_hidden_size decoder_start_token_id
  diversity_penalty do_sample dropout dropout_rate dtype early_stopping
  encoder_no_repeat_ngram_size eos_token_id
  exponential_decay_length_penalty finetuning_task forced_bos_token_id
  forced_eos_token_id gradient_checkpointing hidden_dropout_prob id2label
  initializer_factor initializer_range is_decoder is_encoder_decoder label2id
  length_penalty max_length min_length model_type no_repeat_ngram_size
  num_beam_groups num_beams num_labels num_return_sequences
  output_attentions output_hidden_states output_past output_scores
  pad_token_id prefix problem_type remove_invalid_values repetition_penalty
  return_dict return_dict_in_generate sep_token_id suppress_tokens
  task_specific_params temperature tf_legacy_loss tie_encoder_decoder
  tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript
  transformers.js_config transformers_version type_vocab_size typical_p
  unsloth_fixed unsloth_version use_bfloat16 use_cache use_return_dict
""".split()
)


# Those of two-tower encoders beside them.
_TOWER = (
  'hidden_act', 'hidden_size', 'intermediate_size', 'layer_norm_eps',
  'num_attention_heads', 'num_hidden_layers',
)  # fmt: skip
TOWERS = dict(
  text=(*_TOWER, 'max_position_embeddings', 'vocab_size'),
  vision=(*_TOWER, 'image_size', 'num_channels', 'patch_size'),
)


def _is_whole(x: Any) -> bool:
  return isinstance(x, int) and not isinstance(x, bool) and 0 < x < 2**31


def _all(x: Any, holds: Callable[[Any], bool]) -> bool:
  return isinstance(x, list | tuple) and all(map(holds, x))


# {kind: (what it is, whether a value is one)}
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
  'whole': ('a whole number above 0', _is_whole),
  'wholes': (
    'a list of whole numbers above 0',
    lambda x: _all(x, _is_whole) and len(x) > 0,
  ),
  'each': (
    'a whole number above 0, or a list of them',
    lambda x: _is_whole(x) or (_all(x, _is_whole) and len(x) > 0),
  ),
  'places': (
    'a list of whole numbers',
    lambda x: _all(x, lambda i: _is_whole(i) or (i == 0 and i is not False)),
  ),
  'fraction': (
    'a number between 0 and 1',
    lambda x: isinstance(x, int | float) and 0 < x < 1,
  ),
  'name': ('a name', lambda x: isinstance(x, str)),
  'names': ('a list of names', lambda x: _all(x, lambda y: isinstance(y, str))),
}


def typed(kind: str, config: Mapping[str, Any], **of: Collection[str]) -> None:
  """Refuses options that are nothing one can compute with.

  Args:
    kind: of the model, for the message.
    config: what config.json holds; what is not there has a default.
    **of: {one of _KINDS: the options that are such}.

  Raises:
    ValueError: names all that are something else.
  """
  wrong = [
    f'{name}={reprlib.repr(config[name])}, where it is {_KINDS[key][0]}'
    for key, names in of.items()
    for name in names
    if name in config and not _KINDS[key][1](config[name])
  ]
  if wrong:
    raise ValueError(f'the config of this {kind} has {"; ".join(wrong)}')


def tower(kind: str, config: Mapping[str, Any], *more: str) -> None:
  """`typed` of an encoder of TOWERS, and of `more` whole numbers of its own."""
  whole = (
    'hidden_size', 'num_hidden_layers', 'num_attention_heads',
    'intermediate_size', 'vocab_size', 'max_position_embeddings',
  )  # fmt: skip
  typed(kind, config, whole=(*whole, *more), fraction=('layer_norm_eps',))


def check(
  kind: str,
  config: Mapping[str, Any],
  computed: Mapping[str, tuple[Any, ...]],
  free: Collection[str] = (),
  required: Collection[str] = (),
) -> None:
  """Refuses what is not computed.

  Args:
    kind: of the model, for the message.
    config: what config.json holds. Names that begin with "_" are comments, and
      None stands for an option that is off.
    computed: {option: values that can be computed}; an option that is not there
      has the first of them.
    free: options that may have any value here.
    required: those of `free` that must be there.

  Raises:
    ValueError: all that is missing, or has another value, or that nobody here
      knows, in one sentence.
  """
  missing = [name for name in required if config.get(name) is None]
  found = [f'{name} is missing' for name in missing]
  found += problems(config, computed, free)
  if found:
    raise ValueError(
      f'the config of this {kind} asks for what is not computed: '
      f'{"; ".join(found)}'
    )


def problems(
  config: Mapping[str, Any],
  computed: Mapping[str, tuple[Any, ...]],
  free: Collection[str] = (),
) -> list[str]:
  """What `check` refuses, an option each."""
  out = []
  for name, value in config.items():
    value = tuple(value) if isinstance(value, list) else value
    if name in computed:
      if value not in computed[name]:
        allowed = ' or '.join(map(repr, computed[name]))
        out.append(f'{name}={value!r}, where it is {allowed}')
    elif name not in free and not name.startswith('_') and value is not None:
      out.append(f'{name}={value!r}, an option that is not known')
  return out


def unknown(config: Mapping[str, Any], own: Collection[str]) -> list[str]:
  """Options that neither a model nor any of transformers' has, a sentence each.

  Args:
    config: what config.json holds; see `check` for names and None. An empty
      dict or list asks for nothing, either.
    own: options of the model.
  """
  asked = {k: x for k, x in config.items() if x not in ({}, [])}
  return problems(asked, {}, GENERAL | set(own))


def same(
  folder: str, found: Mapping[str, Any], said: Mapping[str, Any], part: str
) -> None:
  """A released model has to be the one that a config describes.

  Args:
    folder: for the message.
    found: keywords that follow from the model's config.json.
    said: keywords of the config.
    part: of the config where they stand, for the message.

  Raises:
    ConfigError: they differ; names all that do.
  """
  differ = [
    f'{name}={_plain(found[name])} and not {_plain(said[name])}'
    for name in found
    if name in said and _plain(found[name]) != _plain(said[name])
  ]
  if differ:
    raise ConfigError(
      f'{folder} holds another model than the config describes: there '
      f'{", ".join(differ)}; choose the variant of that model, or set these '
      f'fields of config.{part}'
    )


def _plain(value: Any) -> Any:
  return tuple(value) if isinstance(value, list) else value
