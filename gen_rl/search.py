r"""Inference-time search: compute per prompt in place of training.

Candidates of a prompt are initial noises; a deterministic sampler of T network
calls makes pictures of them, a verifier scores those, the best one is kept.

  best of n    all n are finished, then scored
  pruning      (TTSnap, arXiv 2511.22242) unfinished ones are scored by what
               they foresee, xhat_s = x_s - t_s v(x_s, t_s), and only the best
               go on
  zero-order   (arXiv 2501.09732) walks from a pivot z to its best neighbour,
               at a fixed angle and on the sphere where Gaussian noise lies:

    z' = |z| (c u + sqrt(1 - c^2) w),   u = z / |z|, w _|_ u, |w| = 1    (1)

`gen_rl.searches` has these and others as configs name them, as a `Search` of a
`Space`. All return what they spent in the one ledger of `selection`, where
steps that take the velocity of one before (`ode.segments`) count as calls:
which these are shows only as they come. Rows are prompt-major, n candidates of
each prompt; "P" below is the number of prompts. What cannot be scored scores
-inf: never chosen while there is another. Searches are pure and meant to be
traced by jit, with parameters as its arguments.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from gen_rl import selection
from gen_rl.policies.ode import Segments
from gen_rl.rewards import combine
from gen_rl.rewards import inputs as inputs_lib
from gen_rl.types import Array, Params, Policy, Reward, RewardOut, Rows
from gen_rl.utils import rng, tree

# (latents [b ...], Rows) -> scores [b], or [b k] of k verifiers
Verifier = Callable[[Array, Rows], Array]
# (latents [b ...], Rows, candidates of a prompt side by side) -> its answer
Judge = Callable[[Array, Rows, int], RewardOut]


class Found(struct.PyTreeNode):
  """What a search chose for each prompt, and what that cost."""

  sample: Array  # [P ...] latents
  score: Array  # [P] by the verifier; the mean rank if there are several
  index: Array  # [P] int32, which candidate, in the order they were tried
  cost: selection.Cost = struct.field(pytree_node=False)


class Cut(NamedTuple):
  """A step after which only the best go on."""

  step: int  # s, counted from 0
  keep: int  # n_j, static
  verify: Verifier  # of the estimates of this step


class Space(NamedTuple):
  """Where a search goes, and who judges what it finds."""

  segments: Segments
  params: Params  # of the network
  judge: Judge
  weights: Mapping[str, float] = {}  # of the rewards it sums, by label
  chunk: int = 0  # rows computed at a time; 0: all

  def verify(self, group_size: int = 1, each: bool = False) -> Verifier:
    """Of candidates, so many of a prompt side by side; of `each` reward."""
    if each:
      return functools.partial(_scores, self.judge, self.weights, group_size)
    return functools.partial(_score, self.judge, group_size)


class Search(NamedTuple):
  """A way to spend calls on samples: what `config.search` names."""

  # One sample for each of the rows, whose candidates have keys of their own
  find: Callable[[Space, Rows], Found]
  width: int  # candidates of a row that are computed at a time
  # Steps of the sampler -> None, or a ConfigError: it cannot take so many
  check: Callable[[int], None] = lambda steps: None
  # Rewards that compare candidates of one call (win rates) may judge
  relative: bool = False
  gradients: bool = False  # of the rewards are taken
  ranks: bool = False  # of each reward are summed, in place of scores


def judge(
  policy: Policy, params: Params, reward: Reward, reward_params: Params
) -> Judge:
  """Decodes and asks a reward; see `verifier`."""

  def ask(latents: Array, rows: Rows, group_size: int) -> RewardOut:
    media = policy.decode(params, latents)
    inputs = inputs_lib.of(rows, media, group_size, said=latents)
    keys = rng.stream_keys(rows.keys, 'reward')
    return combine.answer(reward.name, reward, reward_params, inputs, keys)

  return ask


def _score(
  ask: Judge, group_size: int, latents: Array, rows: Rows
) -> Float[Array, ' b']:
  out = ask(latents, rows, group_size)
  return jnp.where(out.valid, out.score, -jnp.inf)


def _scores(
  ask: Judge,
  weights: Mapping[str, float],
  group_size: int,
  latents: Array,
  rows: Rows,
) -> Float[Array, 'b k']:
  """Of each reward by itself, less of one whose weight is below 0."""
  out = ask(latents, rows, group_size)
  signed = [
    out.parts[label] if weight > 0 else -out.parts[label]
    for label, weight in weights.items()
  ]
  return jnp.where(out.valid[:, None], jnp.stack(signed, -1), -jnp.inf)


def verifier(
  policy: Policy,
  params: Params,
  reward: Reward,
  reward_params: Params,
  group_size: int = 1,
) -> Verifier:
  """Decodes and scores; rows that are not valid score -inf.

  Args:
    policy: as the next one, whose latents they are.
    params: see policy.
    reward: what scores.
    reward_params: its parameters; of one that is trained, with the learner's.
    group_size: candidates of a prompt that are scored side by side, for rewards
      that compare them; chunks of a search have to hold them together.
  """
  ask = judge(policy, params, reward, reward_params)
  return functools.partial(_score, ask, group_size)


def pruned_search(
  segments: Segments,
  params: Params,
  cuts: Sequence[Cut],
  verify: Verifier,
  rows: Rows,
  n: int,
  chunk: int = 0,
) -> Found:
  """Denoises n candidates, drops some at every cut, chooses among the rest.

  Args:
    segments: see `ode.segments`.
    params: of the network.
    cuts: in the order of their steps; one that keeps all is passed over.
    verify: of the finished samples.
    rows: b = P n, prompt-major.
    n: candidates of a prompt.
    chunk: rows computed at a time, to save memory; 0: all. One of n or more
      keeps the candidates of a prompt together, for rewards that compare them.

  Raises:
    ValueError: rows are not P n, or the cuts are not in order.
  """
  prompts = _prompts(rows, n)
  steps = [cut.step for cut in cuts]
  counts = [n, *(cut.keep for cut in cuts)]
  if steps != sorted(set(steps)) or any(
    not 0 <= step < segments.steps for step in steps
  ):
    raise ValueError(
      f'cuts at the steps {steps}; they must rise within 0..'
      f'{segments.steps - 1}'
    )
  if counts != sorted(counts, reverse=True) or counts[-1] < 1:
    raise ValueError(
      f'numbers of candidates {counts}; no cut may add any or leave none'
    )
  x, start = segments.noise(rows), 0
  index = jnp.tile(jnp.arange(n), prompts)
  for cut in cuts:
    left = len(index) // prompts
    if cut.keep == left:
      continue

    def advance(x: Array, rows: Rows, start=start, cut=cut):
      x, foreseen = segments.run(params, x, rows.cond, start, cut.step + 1)
      return x, cut.verify(foreseen[-1], rows)

    x, scores = in_chunks(advance, _whole(chunk, left), x, rows)
    kept = selection.prune_step(_per_prompt(scores, prompts), cut.keep)
    at = (jnp.arange(prompts)[:, None] * left + kept).reshape(-1)
    x, index, rows = x[at], index[at], take(rows, at)
    start = cut.step + 1

  def finish(x: Array, rows: Rows) -> tuple[Array, Array]:
    x, _ = segments.run(params, x, rows.cond, start, segments.steps)
    return x, verify(x, rows)

  left = len(index) // prompts
  x, scores = in_chunks(finish, _whole(chunk, left), x, rows)
  scores = _per_prompt(scores, prompts)
  best = selection.prune_step(scores, 1)[:, 0]
  at = jnp.arange(prompts) * left + best
  score = jnp.take_along_axis(scores, best[:, None], 1)[:, 0]
  cost = selection.search_cost(
    segments.steps, n, steps, counts[1:], segments.calls
  )
  return Found(x[at], score, index[at].astype(jnp.int32), cost)


def best_of_n(
  segments: Segments,
  params: Params,
  verify: Verifier,
  rows: Rows,
  n: int,
  chunk: int = 0,
) -> Found:
  """The best of n samples by the verifier; see `pruned_search`."""
  return pruned_search(segments, params, (), verify, rows, n, chunk)


def candidates(rows: Rows, n: int) -> Rows:
  """Every row n times, with keys of their own; the first has the row's."""
  b = rows.group.shape[0]
  number = jnp.tile(jnp.arange(n), b)
  many = take(rows, jnp.repeat(jnp.arange(b), n)).replace(alike=n * rows.alike)
  fresh = jax.vmap(jax.random.fold_in)(
    rng.stream_keys(many.keys, 'candidate'), number
  )
  return many.replace(keys=jnp.where(number == 0, many.keys, fresh))


def neighbours(
  keys: Key[Array, ' b'], z: Float[Array, 'P ...'], n: int, cosine: float
) -> Float[Array, 'b ...']:
  """(1): n noises around each of z, as long and at the angle arccos(cosine).

  Args:
    keys: of the b = P n neighbours, prompt-major.
    z: pivots.
    n: neighbours of each.
    cosine: c in (-1, 1); arXiv 2501.09732's code takes 0.95.
  """
  flat = jnp.repeat(z.reshape(z.shape[0], -1), n, axis=0)
  norm = jnp.linalg.norm(flat, axis=-1, keepdims=True)
  u = flat / norm
  w = rng.normal(keys, u.shape[1:])
  w -= jnp.sum(w * u, -1, keepdims=True) * u
  w /= jnp.linalg.norm(w, axis=-1, keepdims=True)
  near = norm * (cosine * u + (1.0 - cosine**2) ** 0.5 * w)
  return near.reshape(-1, *z.shape[1:])


class Walk(struct.PyTreeNode):
  """Where a zero-order search stands; the best is kept apart from the pivot."""

  pivot: Array  # [P ...] noise
  pivot_score: Array  # [P]
  stalled: Array  # [P] rounds since the pivot moved
  noise: Array  # [P ...] of the best so far
  sample: Array  # [P ...] its latents
  score: Array  # [P]
  index: Array  # [P] int32
  round: Array  # [] int32, rounds done


class ZeroOrder(NamedTuple):
  """A search as (init, update)."""

  init: Callable[[], Walk]
  update: Callable[[Walk], Walk]
  cost: selection.Cost  # of init, and of each update


def zero_order(
  segments: Segments,
  params: Params,
  verify: Verifier,
  rows: Rows,
  n: int,
  cosine: float = 0.95,
  patience: int = 1,
  chunk: int = 0,
) -> ZeroOrder:
  """Zero-order search of the noise (arXiv 2501.09732).

  It begins with best of n, whose winner is the first pivot. A round tries n
  neighbours (1) and moves to the best if it beats the pivot. A pivot that did
  not move for `patience` rounds is given up: the next round draws n fresh
  noises and moves to the best of them, whatever it scores (third-party code
  takes an unscored noise instead; this way all rounds cost the same).

  Args:
    segments: see `ode.segments`.
    params: of the network.
    verify: of finished samples; one score, as ranks of different rounds do
      not compare.
    rows: b = P n, prompt-major.
    n: candidates of a round.
    cosine: of neighbours to their pivot.
    patience: rounds without a move; 0 is random search.
    chunk: rows computed at a time; 0: all.
  """
  prompts = _prompts(rows, n)
  keys = rng.stream_keys(rows.keys, 'search')

  def best_of(z: Array) -> tuple[Array, ...]:
    """(noise, sample, score, number) of the best of each prompt's n."""

    def finish(z: Array, rows: Rows) -> tuple[Array, Array]:
      x, _ = segments.run(params, z, rows.cond, 0, segments.steps)
      return x, verify(x, rows)

    x, scores = in_chunks(finish, chunk, z, rows)
    if scores.ndim > 1:
      raise ValueError('zero-order search takes one verifier, not several')
    scores = _per_prompt(scores, prompts)
    best = selection.prune_step(scores, 1)[:, 0]
    at = jnp.arange(prompts) * n + best
    return z[at], x[at], scores.reshape(-1)[at], best.astype(jnp.int32)

  def init() -> Walk:
    z, x, score, best = best_of(segments.noise(rows))
    zero = jnp.zeros((), jnp.int32)
    stalled = jnp.zeros(prompts, jnp.int32)
    return Walk(z, score, stalled, z, x, score, best, zero)

  def update(walk: Walk) -> Walk:
    fresh = walk.stalled >= patience
    new_keys = rng.step_keys(keys, walk.round)
    drawn = segments.noise(rows.replace(keys=new_keys))
    near = neighbours(new_keys, walk.pivot, n, cosine)
    z = tree.where(jnp.repeat(fresh, n), drawn, near)
    z, x, score, best = best_of(z)
    best += (walk.round + 1) * n
    moved = fresh | (score > walk.pivot_score)
    better = score > walk.score
    pivot, pivot_score, stalled = tree.where(
      moved,
      (z, score, jnp.zeros_like(walk.stalled)),
      (walk.pivot, walk.pivot_score, walk.stalled + 1),
    )
    kept = tree.where(
      better,
      (z, x, score, best),
      (walk.noise, walk.sample, walk.score, walk.index),
    )
    return Walk(pivot, pivot_score, stalled, *kept, walk.round + 1)

  cost = selection.search_cost(segments.steps, n, calls=segments.calls)
  return ZeroOrder(init, update, cost)


def zero_order_search(
  segments: Segments,
  params: Params,
  verify: Verifier,
  rows: Rows,
  n: int,
  rounds: int,
  **kwargs: Any,
) -> tuple[Found, Float[Array, 'r P']]:
  """`rounds` of `zero_order` after its best of n, as one program.

  Returns:
    (Found, best scores so far [rounds + 1 P]).
  """
  search = zero_order(segments, params, verify, rows, n, **kwargs)
  first = search.init()

  def body(walk: Walk, _: None) -> tuple[Walk, Array]:
    walk = search.update(walk)
    return walk, walk.score

  walk, trace = jax.lax.scan(body, first, length=rounds)
  cost = sum([search.cost] * rounds, start=search.cost)
  found = Found(walk.sample, walk.score, walk.index, cost)
  return found, jnp.concatenate([first.score[None], trace])


# --- rows


def _prompts(rows: Rows, n: int) -> int:
  """P."""
  b = rows.group.shape[0]
  if n < 1 or b % n:
    raise ValueError(f'{b} rows are not {n} candidates of every prompt')
  return b // n


def _per_prompt(scores: Array, prompts: int) -> Array:
  """[b] or [b k] -> [P n]; of k verifiers, their mean rank."""
  if scores.ndim > 1:
    return selection.rank_ensemble(
      scores.reshape(prompts, -1, scores.shape[-1])
    )
  return scores.reshape(prompts, -1)


def take(rows: Rows, at: Array) -> Rows:
  """Rows at these places; `key` is everybody's."""
  part = jax.tree.map(lambda x: x[at], rows.replace(key=None, alike=1))
  return part.replace(key=rows.key)


def _whole(chunk: int, size: int) -> int:
  """Rows of a chunk that cuts no `size` neighbours apart, if it holds some."""
  return chunk // size * size or chunk


def in_chunks(f: Callable[..., Any], chunk: int, x: Array, rows: Rows) -> Any:
  """f(x, rows) by `chunk` rows at a time, the rest of them at the end."""
  b = x.shape[0]
  if not chunk or chunk >= b:
    return f(x, rows)
  whole = b // chunk * chunk
  each = (x, rows.replace(key=None, alike=1))
  split = lambda a: a[:whole].reshape(-1, chunk, *a.shape[1:])
  out = jax.lax.map(
    lambda part: f(part[0], part[1].replace(key=rows.key)),
    jax.tree.map(split, each),
  )
  out = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), out)
  if whole == b:
    return out
  at = jnp.arange(whole, b)
  rest = f(x[at], take(rows, at))
  return jax.tree.map(lambda a, c: jnp.concatenate([a, c]), out, rest)
