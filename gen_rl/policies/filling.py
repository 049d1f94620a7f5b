"""Rows of codes that are filled in a few steps: their schedule, what one does.

`policies.masked` says what such a policy is, and numbers the equations; here
are the functions of it.
"""

from collections.abc import Callable
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.build import ConfigError
from gen_rl.distributions import (
  Categorical,
  HeadCategorical,
  HeadPlaces,
  Places,
)
from gen_rl.models.parts.layers import MaskNet
from gen_rl.policies import guidance
from gen_rl.types import Array, Params, PyTree, Rows, Trajectory
from gen_rl.utils import rng, tree


class State(NamedTuple):
  """What a step sees, and which places it commits."""

  codes: Array  # [b k n] int32, v where masked
  committed: Array  # [b k n] bool


def schedule(places: int, steps: int) -> np.ndarray:
  """Equation (4): k_t, how many codes each step commits, [T] int.

  At least one each, `places` together.

  Raises:
    ConfigError: not 1 <= steps <= places.
  """
  if not 1 <= steps <= places:
    raise ConfigError(
      f'policy.steps={steps}: a picture of {places} codes is said in 1 to '
      f'{places} steps'
    )
  left = [places]
  for t in range(1, steps + 1):
    wanted = math.floor(places * math.cos(math.pi / 2 * t / steps))
    left.append(min(max(wanted, steps - t), left[-1] - 1))
  return -np.diff(left)


def _largest(x: Array, count: Array | int) -> Array:
  """Bool [b n]: the `count` ([] or [b 1]) largest of each row, first ones."""
  order = jnp.argsort(-x, axis=-1, stable=True)
  return jnp.argsort(order, axis=-1) < count


class Filling(NamedTuple):
  """What the functions below share; see `masked.masked`."""

  net: MaskNet
  counts: tuple[int, ...]  # k_t of (4), T of them
  temperature: float
  choice: float  # a of (2)
  scale: float  # w of guidance
  gradient: Literal['both', 'conditional']
  as_sampled: bool  # whether what is scored is guided, too
  null_prob: float
  head_chunk: int

  @property
  def guided(self) -> bool:
    """Whether there are logits given no prompt."""
    return self.scale != 1

  def prompts(self, params: Params, cond: PyTree, free: Params) -> list:
    """Encoded, and where guided the null ones too, by parameters `free`."""
    ready = [self.net.encode(params, cond)]
    if self.guided:
      ready.append(self.net.encode(free, self.net.null(cond)))
    return ready

  def logits(
    self, params: Params, codes: Array, prompts: list
  ) -> tuple[Array, Array]:
    """(what is sampled, what is scored) [b n v], divided by tau; float32."""
    given = [self.net.apply(params, codes, x) for x in prompts]
    return _Read(self, sampled=True).logits(*given), (
      _Read(self, sampled=self.as_sampled).logits(*given)
    )


class _Read(NamedTuple):
  """Logits of each prompt -> those of (1) or those scored; equal where all is.

  A head of `HeadCategorical`, too.
  """

  filling: Filling
  sampled: bool  # (1); else softmax(l / tau)

  def logits(self, cond: Array, null: Array | None = None) -> Array:
    cond, filling = cond.astype(jnp.float32), self.filling
    if null is None or not self.sampled:
      return cond / filling.temperature
    null = null.astype(jnp.float32)
    return (null + filling.scale * (cond - null)) / filling.temperature

  def __call__(self, owners: PyTree, hidden: PyTree) -> Array:
    """Of the vectors before the heads of these parameters."""
    net = self.filling.net
    return self.logits(*(net.logits(p, h) for p, h in zip(owners, hidden)))


def rollout(
  filling: Filling, params: Params, rows: Rows, step: Array
) -> Trajectory:
  """Fills rows of codes."""
  del step
  steps = len(filling.counts)

  def pick(logits: Array, i: Array) -> Array:
    return Categorical(logits).sample(rng.step_keys(rows.keys, i))

  def confidence(log_p: Array, i: Array) -> Array:
    keys = rng.stream_keys(rng.step_keys(rows.keys, i), 'choice')
    noise = jax.vmap(lambda key: jax.random.gumbel(key, log_p.shape[1:]))(keys)
    if math.isinf(filling.choice):
      return noise
    return log_p + filling.choice * (1 - (i + 1) / steps) * noise

  states, actions, log_prob, codes = _generate(
    filling, params, rows, pick, confidence
  )
  zeros = jnp.zeros_like(log_prob)
  return Trajectory(
    cond=rows.cond,
    states=states,
    actions=actions,
    times=jnp.zeros((*zeros.shape, 2)),
    noise=zeros,
    log_prob=log_prob,
    mask=jnp.ones_like(zeros),
    sample=codes,
    group=rows.group,
  )


def greedy(filling: Filling, params: Params, rows: Rows) -> Array:
  """The likeliest codes, the surest first, [b n]."""
  pick = lambda logits, _: logits.argmax(-1)
  return _generate(filling, params, rows, pick, lambda log_p, _: log_p)[-1]


def _generate(
  filling: Filling,
  params: Params,
  rows: Rows,
  pick: Callable[[Array, Array], Array],
  confidence: Callable[[Array, Array], Array],
) -> tuple[State, Array, Array, Array]:
  """(states, actions [b T n], log-probs (5) [b T], codes [b n]).

  Args:
    filling: of the policy.
    params: of the net.
    rows: what is asked.
    pick: (logits g / tau [b n v], step) -> codes [b n].
    confidence: (log p of the codes [b n], step) -> c of (2) [b n].
  """
  net, steps = filling.net, len(filling.counts)
  b, n = rows.group.shape[0], net.length
  prompts = filling.prompts(params, rows.cond, params)

  def body(i: Array, carry: tuple) -> tuple:
    codes, kept = carry
    g, scored = filling.logits(params, codes, prompts)
    said = pick(g, i)
    gap = codes == net.vocab
    sure = confidence(Categorical(g).log_prob(said), i)
    sure = jnp.where(gap, sure, -jnp.inf)
    new = gap & _largest(sure, jnp.asarray(filling.counts)[i])
    action = jnp.where(new, said, net.vocab).astype(jnp.int32)
    log_prob = Places(scored[:, None], new[:, None]).log_prob(action[:, None])
    made = State(codes, new), action, log_prob[:, 0]
    kept = jax.tree.map(lambda all, one: all.at[:, i].set(one), kept, made)
    return jnp.where(new, action, codes), kept

  blank = jnp.zeros((b, steps, n), jnp.int32)
  kept = State(blank, blank > 0), blank, jnp.zeros((b, steps))
  codes = jnp.full((b, n), net.vocab, jnp.int32)
  codes, kept = jax.lax.fori_loop(0, steps, body, (codes, kept))
  return (*kept, codes)


def dist(
  filling: Filling, params: Params, traj: Trajectory
) -> Places | HeadPlaces:
  """Of the stored decisions, [b T]."""
  net, steps = filling.net, len(filling.counts)
  free = guidance.unconditional(params, filling.gradient)
  prompts = filling.prompts(params, traj.cond, free)
  prompts = jax.tree.map(lambda x: jnp.repeat(x, steps, 0), prompts)
  codes = traj.states.codes.reshape(-1, net.length)
  owners = (params, free)[: len(prompts)]
  read = _Read(filling, filling.as_sampled)
  chosen = traj.states.committed
  asked = zip(owners, prompts, strict=True)
  if not filling.head_chunk:
    scored = read.logits(*(net.apply(p, codes, x) for p, x in asked))
    return Places(scored.reshape(*chosen.shape, net.vocab), chosen)
  b = len(chosen)
  hidden = tuple(
    net.hidden(p, codes, x).reshape(b, chosen[0].size, -1) for p, x in asked
  )
  head = HeadCategorical(hidden, owners, read, filling.head_chunk)
  return HeadPlaces(head, chosen)


def nll(
  filling: Filling, params: Params, traj: Trajectory, keys: Array
) -> Array:
  """(7), [b]."""
  net, n = filling.net, filling.net.length
  x, cond = traj.sample, traj.cond
  if filling.null_prob > 0:
    drop_keys = rng.stream_keys(keys, 'null')
    drop = jax.vmap(jax.random.bernoulli, (0, None))(
      drop_keys, filling.null_prob
    )
    cond = tree.where(drop, net.null(cond), cond)
  u = rng.uniform(rng.stream_keys(keys, 'rate'), (1,))
  count = jnp.maximum(jnp.ceil(n * jnp.cos(jnp.pi / 2 * u)), 1.0)
  gap = _largest(rng.uniform(rng.stream_keys(keys, 'places'), (n,)), count)
  codes = jnp.where(gap, net.vocab, x)
  logits = net.apply(params, codes, net.encode(params, cond))
  return -Places(logits, gap).log_prob(x) / count[:, 0]
