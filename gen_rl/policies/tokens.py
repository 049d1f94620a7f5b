r"""A next-token network as a policy: every token is a decision.

With l the network's logits at position j, given the prompt (and picture) and
the tokens before j, and l0 those given no prompt,

  g   = l0 + w (l - l0)                        guidance (arXiv 2207.12598)  (1)
  p_s = truncate(softmax(g / tau))             what is sampled              (2)
  p   = softmax(g / tau)   score = 'guided'    what is scored               (3)
  p   = softmax(l / tau)   score = 'cond'

The first w = 1 where there is no guidance, and then both scores are the same.
'guided' differentiates what is sampled, l and l0, or l alone where
guidance_gradient='conditional' (`policies.guidance`). 'cond' is what T2I-R1
does (arXiv 2505.00703): its gradient with respect to l is that of 'guided' over
w where the advantages of a state average to zero, and where they do not,
guidance is distilled into the conditional logits; with several updates per
rollout its ratio is not the importance weight of what was sampled. Truncation
(top-k, top-p) is left out of the score, as in other code: a token may leave the
current policy's top k, and would have no log-probability then.

A row ends with the token `end`, which it chose and which is trained; what
follows is padding and is not. With `drop_truncated` nothing is trained of a row
that does not end (overlong filtering, arXiv 2503.14476). With `greedy_first`
the first row of a group says what is likeliest and is not trained, the baseline
of `advantages.scst`. Tokens may be forced: where cond["forced"] [b k] is not
negative it is what the policy says, and not what it chose. One kernel samples,
with cached keys and values, and scores, by one pass over given tokens; the two
agree to rounding (tests: 1e-5).
"""

from collections.abc import Mapping
import functools
import math
from typing import Any, Literal

from gen_rl.build import ConfigError
from gen_rl.fields import (
  Count,
  Fraction,
  Index,
  NonNegative,
  Positive,
  RowsOrAll,
  Share,
)
from gen_rl.models.parts.layers import PAD, TokenNet
from gen_rl.policies import coded, guidance
from gen_rl.policies import speech as speech_lib
from gen_rl.types import Policy


def _check(length, temperature, top_k, top_p, score) -> None:
  if length < 1:
    raise ConfigError(f'policy.length={length}: at least one token is said')
  if temperature <= 0:
    raise ConfigError(
      f'policy.temperature={temperature} must be positive; what is most likely '
      'is said by eval.sampler="greedy"'
    )
  if top_k < 0 or not 0 < top_p <= 1:
    raise ConfigError(
      f'policy.top_k={top_k} is 0 (all) or positive, and policy.top_p={top_p} '
      'is in (0, 1]'
    )
  if score not in ('guided', 'cond'):
    raise ConfigError(f"policy.score is {score!r}: it is 'guided' or 'cond'")


def tokens(
  net: TokenNet,
  length: Count = 8,
  end: int | None = None,
  temperature: Positive = 1.0,
  top_k: Index = 0,
  top_p: Share = 1.0,
  guidance_scale: NonNegative = 1.0,
  guidance_gradient: Literal['both', 'conditional'] = 'both',
  score: Literal['guided', 'cond'] = 'guided',
  null_prob: Fraction = 0.0,
  drop_truncated: bool = False,
  greedy_first: bool = False,
  head_chunk: RowsOrAll = 0,
  pad: int = PAD,
) -> Policy:
  """A policy that says tokens. Log-probs are of single tokens.

  Args:
    net: of `models`.
    length: k, most tokens said.
    end: id of the token that ends a row; None: all rows have `length` tokens.
    temperature: tau of (2) and (3).
    top_k: see `speech.truncated`; 0 is off.
    top_p: see `speech.truncated`; 1 is off.
    guidance_scale: w of (1), 1 is off.
    guidance_gradient: 'both', of l and l0, or 'conditional', of l alone.
    score: whose log-probs are trained, see (3).
    null_prob: share of rows that lose their prompt in `nll`, for guidance.
    drop_truncated: rows without an end token are not trained.
    greedy_first: the first row of a group has no chance and is not trained.
    head_chunk: decisions of a row whose logits are held at a time when they are
      scored, see `distributions.HeadCategorical`; 0: all.
    pad: id that fills a row behind its end; said before, it is a token.

  Raises:
    ConfigError: numbers out of range, or no end token to drop rows by.
  """
  _check(length, temperature, top_k, top_p, score)
  if drop_truncated and end is None:
    raise ConfigError(
      'policy.drop_truncated: there is no end token, all rows have '
      f'policy.length={length} tokens; use a tokenizer with an end'
    )
  guidance.check(guidance_gradient)
  if head_chunk and net.hidden is None:
    raise ConfigError(
      f'policy.head_chunk={head_chunk}: this network has no head of its own'
    )
  speech = speech_lib.Speech(
    net, length, end, pad, temperature, top_k, top_p, guidance_scale,
    guidance_gradient, score == 'guided', null_prob, drop_truncated,
    greedy_first, head_chunk,
  )  # fmt: skip
  of_speech = (speech_lib.dist, speech_lib.nll, speech_lib.greedy)
  ops = {op.__name__: functools.partial(op, speech) for op in of_speech}
  if net.hidden is not None:
    ops['features'] = lambda params, traj: net.hidden(
      params, traj.cond, traj.actions
    )
  return Policy(
    net.init,
    functools.partial(speech_lib.rollout, speech),
    lambda params, latent: latent,
    ops,
    axes=net.axes,
  )


def image_tokens(
  net: TokenNet,
  codec: Mapping[str, Any],
  codec_weights: str = '',
  temperature: Positive = 1.0,
  top_k: Index = 0,
  top_p: Share = 1.0,
  guidance_scale: NonNegative = 1.0,
  guidance_gradient: Literal['both', 'conditional'] = 'both',
  score: Literal['guided', 'cond'] = 'guided',
  null_prob: Fraction = 0.0,
) -> Policy:
  """A policy that says the codes of a picture, which a codec turns into one.

  Parameters are dict(net, codec), see `coded.coded`.

  Args:
    net: of `models.ar_image`, as many codes as the codec has.
    codec: spec of a codec of `models`.
    codec_weights: of the codec, see `coded.coded`.
    temperature: see `tokens`.
    top_k: see `tokens`.
    top_p: see `tokens`.
    guidance_scale: see `tokens`.
    guidance_gradient: see `tokens`.
    score: see `tokens`.
    null_prob: see `tokens`.

  Raises:
    ConfigError: the net has another number of codes than the codec.
    WeightsError: when initialised, the file does not fit the codec.
  """
  book = coded.codec_of(codec, net.vocab)
  said = tokens(
    net, math.prod(book.grid), None, temperature, top_k, top_p, guidance_scale,
    guidance_gradient, score, null_prob,
  )  # fmt: skip
  return coded.coded(said, book, codec_weights)
