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

from collections.abc import Callable, Mapping
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gen_rl.build import ConfigError
from gen_rl.distributions import Categorical, HeadCategorical
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
from gen_rl.types import Array, Params, Policy, PyTree, Rows, Trajectory
from gen_rl.utils import rng, tree


def chosen(tokens: Array, end: int | None) -> Array:
  """Bool [b k]: what was said up to and including the first end token.

  Args:
    tokens: [b k] int.
    end: None: all of it.
  """
  if end is None:
    return jnp.ones(tokens.shape, bool)
  ended = jnp.cumsum(tokens == end, 1)
  return (ended == 0) | ((ended == 1) & (tokens == end))


def truncated(logits: Array, top_k: int = 0, top_p: float = 1.0) -> Array:
  """Logits with what is not to be sampled at -inf.

  Args:
    logits: [... v], divided by the temperature.
    top_k: keeps the k largest (and those equal to the k-th); 0 keeps all.
    top_p: keeps the fewest tokens whose probabilities sum to at least this
      (arXiv 1904.09751), at least one; of what top_k left.
  """
  v = logits.shape[-1]
  if 0 < top_k < v:
    least = jax.lax.top_k(logits, top_k)[0][..., -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  if top_p < 1:
    ordered = jnp.sort(logits, -1, descending=True)
    p = jax.nn.softmax(ordered, -1)
    before = jnp.cumsum(p, -1) - p  # of the likelier ones
    least = jnp.where(before < top_p, ordered, jnp.inf).min(-1, keepdims=True)
    logits = jnp.where(logits < least, -jnp.inf, logits)
  return logits


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
    top_k: see `truncated`; 0 is off.
    top_p: see `truncated`; 1 is off.
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
  guided = guidance_scale != 1

  def mix(with_prompt: Array, without: Array | None) -> Array:
    """(1), of logits."""
    if without is None:
      return with_prompt
    return without + guidance_scale * (with_prompt - without)

  def generate(
    params: Params, rows: Rows, pick: Callable[[Array, Array], Array]
  ) -> tuple[Array, Array, Array]:
    """(tokens, log-probs of (3), mask), all [b k].

    Args:
      params: of the net.
      rows: what is asked.
      pick: (logits g / tau [b v], position) -> tokens [b].
    """
    b = rows.group.shape[0]
    forced = rows.cond.get('forced')
    if forced is not None and forced.shape[1] != length:
      raise ConfigError(
        f'cond["forced"] says {forced.shape[1]} tokens, policy.length is '
        f'{length}'
      )
    conds = [rows.cond] + ([net.null(rows.cond)] if guided else [])
    ready = [net.prefill(params, cond, length) for cond in conds]

    def say(i, alive, said, logits):
      g = mix(*(logits if guided else (logits[0], None))) / temperature
      token = pick(g, i)
      mask = alive
      if forced is not None:
        given = forced[:, i]
        token = jnp.where(given >= 0, given, token)
        mask &= given < 0
      token = jnp.where(alive, token, pad).astype(jnp.int32)
      kept = g if score == 'guided' else logits[0] / temperature
      log_prob = Categorical(kept[:, None]).log_prob(token[:, None])[:, 0]
      new = token, jnp.where(mask, log_prob, 0.0), mask.astype(jnp.float32)
      said = tuple(x.at[:, i].set(y) for x, y in zip(said, new, strict=True))
      if end is not None:
        alive &= token != end
      return alive, said, token

    def going(carry) -> Array:
      i, alive, *_ = carry
      return (i < length) & alive.any()

    def body(carry):
      i, alive, said, caches, token = carry
      ready = [net.step(params, cache, token) for cache in caches]
      caches, logits = zip(*ready, strict=True)
      alive, said, token = say(i, alive, said, logits)
      return i + 1, alive, said, caches, token

    zeros = jnp.zeros((b, length))
    said = zeros.astype(jnp.int32), zeros, zeros
    caches, logits = zip(*ready, strict=True)
    alive, said, token = say(0, jnp.ones(b, bool), said, logits)
    carry = jnp.int32(1), alive, said, caches, token
    if length > 1:
      carry = jax.lax.while_loop(going, body, carry)
    return carry[2]

  def rollout(params: Params, rows: Rows, step: Array) -> Trajectory:
    del step
    first = rows.member == 0 if greedy_first else None

    def pick(logits: Array, i: Array) -> Array:
      keys = rng.step_keys(rows.keys, i)[:, None]
      kept = truncated(logits, top_k, top_p)
      drawn = Categorical(kept[:, None]).sample(keys)[:, 0]
      if greedy_first:
        drawn = jnp.where(first, logits.argmax(-1), drawn)
      return drawn

    said, log_prob, mask = generate(params, rows, pick)
    if drop_truncated:
      mask *= (said == end).any(1, keepdims=True)
    if greedy_first:
      mask *= ~first[:, None]
    zeros = jnp.zeros_like(log_prob)
    return Trajectory(
      cond=rows.cond,
      states=(),
      actions=said,
      times=jnp.zeros((*said.shape, 2)),
      noise=zeros,
      log_prob=log_prob,
      mask=mask,
      sample=said,
      group=rows.group,
    )

  def greedy(params: Params, rows: Rows) -> Array:
    return generate(params, rows, lambda logits, _: logits.argmax(-1))[0]

  def sampled_as(logits: Array, null: Array | None = None) -> Array:
    return mix(logits, null).astype(jnp.float32) / temperature

  def scores(
    asked: list[tuple[Params, PyTree]],
    actions: Array,
    read: Callable[..., Array],
  ) -> Categorical | HeadCategorical:
    """Of the logits given each cond, by its parameters, as `read` takes them.

    Args:
      asked: (parameters, cond) of each logits.
      actions: [b k].
      read: one of `heads`.
    """
    if not head_chunk:
      return Categorical(read(*(net.score(*a, actions) for a in asked)))
    hidden = tuple(net.hidden(*a, actions) for a in asked)
    owners = tuple(params for params, _ in asked)
    return HeadCategorical(hidden, owners, heads[read], head_chunk)

  def head(read: Callable[..., Array]) -> Callable[[PyTree, PyTree], Array]:
    return lambda owners, hidden: read(
      *(net.logits(p, h) for p, h in zip(owners, hidden, strict=True))
    )

  plain = lambda logits: logits
  heads = {read: head(read) for read in (sampled_as, plain)}

  def dist(params: Params, traj: Trajectory) -> Categorical | HeadCategorical:
    asked = [(params, traj.cond)]
    if guided and score == 'guided':
      free = guidance.unconditional(params, guidance_gradient)
      asked += [(free, net.null(traj.cond))]
    return scores(asked, traj.actions, sampled_as)

  def nll(params: Params, traj: Trajectory, keys: Array) -> Array:
    x, cond = traj.sample, traj.cond
    if null_prob > 0:
      drop_keys = rng.stream_keys(keys, 'null')
      drop = jax.vmap(jax.random.bernoulli, (0, None))(drop_keys, null_prob)
      cond = tree.where(drop, net.null(cond), cond)
    log_prob = scores([(params, cond)], x, plain).log_prob(x)
    said = chosen(x, end) & (x >= 0)
    total = jnp.where(said, -log_prob, 0.0).sum(1)
    return total / jnp.maximum(said.sum(1), 1)

  def decode(params: Params, latent: Array) -> Array:
    del params
    return latent

  ops = dict(dist=dist, nll=nll, greedy=greedy)
  if net.hidden is not None:
    ops['features'] = lambda params, traj: net.hidden(
      params, traj.cond, traj.actions
    )
  return Policy(net.init, rollout, decode, ops, axes=net.axes)


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
