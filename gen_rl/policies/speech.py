"""Rows of tokens: what is sampled of them, what is scored.

`policies.tokens` says what such a policy is; here are the functions of it.

Neighbours that ask the same (`Rows.alike`) have their prompt read once. A loop
says a token of every row, and ended rows cost what others do: where rows may be
long, it stops as soon as no more than half of the rows go on, and the next loop
runs on these alone. Rows stay in their group, or on their device, so nothing
moves between devices.
"""

from collections.abc import Callable
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from gen_rl.build import ConfigError
from gen_rl.distributions import Categorical, HeadCategorical
from gen_rl.models.parts import layers
from gen_rl.models.parts.layers import TokenNet
from gen_rl.policies import guidance
from gen_rl.types import Array, Params, PyTree, Rows, Trajectory
from gen_rl.utils import rng, tree

# Rows of fewer tokens are not worth a second loop, which is compiled as well.
LONG = 64
LOOPS = 4  # at most, each on half of the rows


class Speech(NamedTuple):
  """What the functions below share; see `tokens.tokens`."""

  net: TokenNet
  length: int
  end: int | None
  pad: int
  temperature: float
  top_k: int
  top_p: float
  scale: float  # w of guidance
  gradient: Literal['both', 'conditional']
  as_sampled: bool  # whether what is scored is guided, too
  null_prob: float
  drop_truncated: bool
  greedy_first: bool
  head_chunk: int

  @property
  def guided(self) -> bool:
    """Whether there are logits given no prompt."""
    return self.scale != 1

  def mix(self, with_prompt: Array, without: Array | None = None) -> Array:
    """(1) of `policies.tokens`, of logits."""
    if without is None:
      return with_prompt
    return without + self.scale * (with_prompt - without)


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


def rollout(
  speech: Speech, params: Params, rows: Rows, step: Array
) -> Trajectory:
  """Says rows of tokens."""
  del step
  first = rows.member == 0 if speech.greedy_first else None

  def pick(logits: Array, i: Array, own: PyTree) -> Array:
    row_keys, first = own
    keys = rng.step_keys(row_keys, i)[:, None]
    kept = truncated(logits, speech.top_k, speech.top_p)
    drawn = Categorical(kept[:, None]).sample(keys)[:, 0]
    if speech.greedy_first:
      drawn = jnp.where(first, logits.argmax(-1), drawn)
    return drawn

  said, log_prob, mask = _generate(
    speech, params, rows, pick, (rows.keys, first)
  )
  if speech.drop_truncated:
    mask *= (said == speech.end).any(1, keepdims=True)
  if speech.greedy_first:
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


def greedy(speech: Speech, params: Params, rows: Rows) -> Array:
  """The likeliest token at every place, [b k]."""
  pick = lambda logits, *_: logits.argmax(-1)
  return _generate(speech, params, rows, pick, ())[0]


class _Going(NamedTuple):
  """Rows in the middle of being said; rows first, but for `at`."""

  at: Array  # [] the next token's place
  alive: Array  # [b] bool
  said: tuple[Array, Array, Array]  # tokens, log-probs, mask [b k]
  caches: tuple[PyTree, ...]  # for each prompt: the row's own, and of none
  token: Array  # [b] the last one said
  own: PyTree  # [b ...] what `pick` reads of a row
  forced: Array | None  # [b k]


def _generate(
  speech: Speech,
  params: Params,
  rows: Rows,
  pick: Callable[[Array, Array, PyTree], Array],
  own: PyTree,
) -> tuple[Array, Array, Array]:
  """(tokens, log-probs of what is scored, mask), all [b k].

  Args:
    speech: of the policy.
    params: of the net.
    rows: what is asked.
    pick: (logits g / tau [b v], position, own) -> tokens [b].
    own: [b ...], what `pick` has of the rows it is called for.
  """
  net, length, end = speech.net, speech.length, speech.end
  b = rows.group.shape[0]
  forced = rows.cond.get('forced')
  if forced is not None and forced.shape[1] != length:
    raise ConfigError(
      f'cond["forced"] says {forced.shape[1]} tokens, policy.length is {length}'
    )
  devices = math.gcd(layers.shards('batch'), b)
  alike = math.gcd(rows.alike, b // devices) if net.repeat else 1
  conds = [rows.cond] + ([net.null(rows.cond)] if speech.guided else [])
  ready = [_prefilled(speech, params, cond, alike) for cond in conds]

  def say(going: _Going, logits: tuple[Array, ...]) -> _Going:
    i, alive = going.at, going.alive
    g = speech.mix(*logits) / speech.temperature
    token = pick(g, i, going.own)
    mask = alive
    if going.forced is not None:
      given = going.forced[:, i]
      token = jnp.where(given >= 0, given, token)
      mask &= given < 0
    token = jnp.where(alive, token, speech.pad).astype(jnp.int32)
    kept = g if speech.as_sampled else logits[0] / speech.temperature
    log_prob = Categorical(kept[:, None]).log_prob(token[:, None])[:, 0]
    new = token, jnp.where(mask, log_prob, 0.0), mask.astype(jnp.float32)
    said = tuple(
      x.at[:, i].set(y) for x, y in zip(going.said, new, strict=True)
    )
    if end is not None:
      alive &= token != end
    return going._replace(at=i + 1, alive=alive, said=said, token=token)

  def body(going: _Going) -> _Going:
    ready = [net.step(params, cache, going.token) for cache in going.caches]
    caches, logits = zip(*ready, strict=True)
    return say(going._replace(caches=caches), logits)

  zeros = jnp.zeros((b, length))
  said = zeros.astype(jnp.int32), zeros, zeros
  caches, logits = zip(*ready, strict=True)
  first = jnp.zeros(b, jnp.int32)
  going = _Going(
    jnp.int32(0), jnp.ones(b, bool), said, caches, first, own, forced
  )
  going = say(going, logits)
  if length == 1:
    return going.said
  loops = LOOPS if end is not None and length >= LONG else 1
  units = b // alike if alike > 1 else devices
  said, log_prob, mask = _finished(body, length, units, loops, going)
  if alike > 1:  # what the prompt was read for
    asked = rows.cond['tokens']
    same = (asked == jnp.repeat(asked[::alike], alike, 0)).all()
    log_prob = jnp.where(same, log_prob, jnp.nan)
  return said, log_prob, mask


def _prefilled(
  speech: Speech, params: Params, cond: PyTree, alike: int
) -> tuple[PyTree, Array]:
  """A cache and the first logits, of `alike` neighbours at a time."""
  net = speech.net
  if alike == 1:
    return net.prefill(params, cond, speech.length)
  first = lambda x: x.reshape(-1, alike, *x.shape[1:])[:, 0]
  once = jax.tree.map(first, cond)
  cache, logits = net.prefill(params, once, speech.length)
  return net.repeat(cache, alike), jnp.repeat(logits, alike, 0)


def _finished(
  body: Callable[[_Going], _Going],
  length: int,
  units: int,
  loops: int,
  going: _Going,
) -> tuple[Array, Array, Array]:
  """What all rows said in the end.

  Args:
    body: says one token.
    length: k.
    units: neighbours between which rows may change places: groups, devices.
    loops: how many there may be, this one included.
    going: b rows.
  """
  b = len(going.alive)
  each = b // units
  half = each // 2 if loops > 1 and b >= 2 * LOOPS else 0

  def go_on(going: _Going) -> Array:
    alive = going.alive.reshape(units, each).sum(1)
    return (going.at < length) & (alive.max() > half)

  going = jax.lax.while_loop(go_on, body, going)
  if not half:
    return going.said
  alive = going.alive.reshape(units, each)
  places = jnp.argsort(~alive, axis=1, stable=True)[:, :half]

  def take(x: Array) -> Array:
    """Of what has rows: prompts that rows share, and scalars, have none."""
    if not x.ndim or len(x) != b:
      return x
    taken = jax.vmap(lambda x, at: x[at])
    return taken(x.reshape(units, each, *x.shape[1:]), places).reshape(
      -1, *x.shape[1:]
    )

  left = _finished(body, length, units, loops - 1, jax.tree.map(take, going))

  def back(x: Array, new: Array) -> Array:
    put = jax.vmap(lambda x, at, new: x.at[at].set(new))
    x, new = (a.reshape(units, -1, *a.shape[1:]) for a in (x, new))
    return put(x, places, new).reshape(b, *x.shape[2:])

  return jax.tree.map(back, going.said, left)


def dist(
  speech: Speech, params: Params, traj: Trajectory
) -> Categorical | HeadCategorical:
  """Of the stored tokens, [b k]."""
  asked = [(params, traj.cond)]
  if speech.guided and speech.as_sampled:
    free = guidance.unconditional(params, speech.gradient)
    asked += [(free, speech.net.null(traj.cond))]

  return _scores(speech, asked, traj.actions, _Read(speech, plain=False))


def nll(speech: Speech, params: Params, traj: Trajectory, keys: Array) -> Array:
  """Mean over what a row says of -log p, [b], without temperature."""
  x, cond = traj.sample, traj.cond
  if speech.null_prob > 0:
    drop_keys = rng.stream_keys(keys, 'null')
    drop = jax.vmap(jax.random.bernoulli, (0, None))(
      drop_keys, speech.null_prob
    )
    cond = tree.where(drop, speech.net.null(cond), cond)
  read = _Read(speech, plain=True)
  log_prob = _scores(speech, [(params, cond)], x, read).log_prob(x)
  said = chosen(x, speech.end) & (x >= 0)
  total = jnp.where(said, -log_prob, 0.0).sum(1)
  return total / jnp.maximum(said.sum(1), 1)


class _Read(NamedTuple):
  """Logits of each prompt -> those that are scored; equal where all is."""

  speech: Speech
  plain: bool  # without guidance and temperature

  def logits(self, *given: Array) -> Array:
    if self.plain:
      return given[0]
    mixed = self.speech.mix(*given)
    return mixed.astype(jnp.float32) / self.speech.temperature

  def __call__(self, owners: PyTree, hidden: PyTree) -> Array:
    """Of the vectors before the heads of these parameters."""
    return self.logits(
      *(self.speech.net.logits(p, h) for p, h in zip(owners, hidden))
    )


def _scores(
  speech: Speech,
  asked: list[tuple[Params, PyTree]],
  actions: Array,
  read: _Read,
) -> Categorical | HeadCategorical:
  """Of logits given prompts.

  Args:
    speech: of the policy.
    asked: (parameters, cond) of each logits.
    actions: [b k].
    read: which of them are scored.
  """
  net = speech.net
  if not speech.head_chunk:
    return Categorical(read.logits(*(net.score(*a, actions) for a in asked)))
  hidden = tuple(net.hidden(*a, actions) for a in asked)
  owners = tuple(params for params, _ in asked)
  return HeadCategorical(hidden, owners, read, speech.head_chunk)
