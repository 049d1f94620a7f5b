"""Distributions over the k decisions of each row, as pytrees.

Gaussian with one standard deviation per decision, per event dimension d:

  log p(a)   = -(a - m)^2 / (2 s^2) - log s - log(2 pi) / 2              (1)
  KL(p || q) = (e^u - 1 - u) / 2 + (m_p - m_q)^2 / (2 s_q^2),
               u = 2 log(s_p / s_q)                                      (2)
  H(p)       = log s + (1 + log(2 pi)) / 2                               (3)

The event dimensions are then summed (`event='sum'`: the joint density) or
averaged (`event='mean'`, as Flow-GRPO, arXiv 2505.05470: a ratio of such
log-probs is the true ratio to the power 1/D, so clip ranges shrink with it).
`scale='unit'` replaces (1) by Flow-CPS's (arXiv 2509.05952)

  log p(a) = -(a - m)^2                                                  (4)

whose log-ratios are 2 s^2 times smaller; (2) and (3) stay as they are.

A decision with s == 0 was not a choice: its log_prob, kl and entropy are 0
and so are all its gradients. Everything is computed in float32, whatever the
dtype of the fields.

Softmax over v choices: `Categorical`, one choice per decision, or
`HeadCategorical`, whose logits are never all there. Where a decision
is a set C of independent ones, `Places` adds up

  log p(a) = sum_{j in C} log p_j(a_j)                                   (5)

and likewise KL and entropy. `Concat` puts decisions of unlike kinds behind one
another.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any, Literal

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Float32, Int

from gen_rl.models.parts import layers
from gen_rl.types import AnyArray, Array, Dist, PyTree

_LOG_2PI = math.log(2 * math.pi)


def _f32(x: Array) -> Array:
  return jnp.asarray(x, jnp.float32)


def decision_keys(keys: Array, shape: tuple[int, ...]) -> Array:
  """One key per decision: [] -> [b] -> [b k], by `fold_in` of the index.

  Args:
    keys: typed keys, [], [b] or [b k]; those given per decision are used as
      they are, so a step-by-step rollout can pass `fold_in(row_key, i)`.
    shape: (b, k).

  Returns:
    Typed keys of shape `shape`.
  """
  if keys.shape != shape[: keys.ndim]:
    raise ValueError(
      f'keys have shape {keys.shape}; expected a prefix of {shape}.'
    )
  while keys.ndim < len(shape):
    index = jnp.arange(shape[keys.ndim])
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    for _ in range(keys.ndim):
      fold = jax.vmap(fold, in_axes=(0, None))
    keys = fold(keys, index)
  return keys


def _per_decision(fn, keys: Array):
  for _ in range(keys.ndim):
    fn = jax.vmap(fn)
  return fn


class Gaussian(struct.PyTreeNode):
  """Isotropic normal per decision; s == 0 marks a deterministic step."""

  mean: Array  # [b k ...]
  std: Array  # [b k]      >= 0
  event: Literal['sum', 'mean'] = struct.field(pytree_node=False, default='sum')
  scale: Literal['full', 'unit'] = struct.field(
    pytree_node=False, default='full'
  )

  def __post_init__(self):
    if self.event not in ('sum', 'mean'):
      raise ValueError(f"event={self.event!r}; valid: 'sum', 'mean'.")
    if self.scale not in ('full', 'unit'):
      raise ValueError(f"scale={self.scale!r}; valid: 'full', 'unit'.")

  def sample(self, keys: Array) -> Array:
    """Actions [b k ...] float32; `keys` as in `decision_keys`."""
    mean, std = _f32(self.mean), self._expand(_f32(self.std))
    keys = decision_keys(keys, self.std.shape)
    event_shape = mean.shape[self.std.ndim :]
    normal = _per_decision(lambda k: jax.random.normal(k, event_shape), keys)
    return mean + std * normal(keys)

  def log_prob(self, actions: Array) -> Array:
    """(1) or (4), [b k]. `actions` [b k ...] may carry gradients."""
    if actions.shape != self.mean.shape:
      raise ValueError(
        f'actions have shape {actions.shape}, the mean {self.mean.shape}.'
      )
    valid, std = self._safe_std()
    diff = _f32(actions) - _f32(self.mean)
    diff = jnp.where(self._expand(valid), diff, 0.0)
    if self.scale == 'unit':
      return self._reduce(-jnp.square(diff))
    sq = self._reduce(-0.5 * jnp.square(diff / self._expand(std)))
    norm = self._count() * (jnp.log(std) + 0.5 * _LOG_2PI)
    return sq - jnp.where(valid, norm, 0.0)

  def kl(self, other: 'Gaussian') -> Array:
    """(2), KL(self || other) [b k]; 0 where either std is 0."""
    if other.mean.shape != self.mean.shape or other.event != self.event:
      raise ValueError(
        f'kl of unlike Gaussians: {self.mean.shape} {self.event}, '
        f'{other.mean.shape} {other.event}.'
      )
    valid_p, std_p = self._safe_std()
    valid_q, std_q = other._safe_std()
    valid = valid_p & valid_q
    diff = _f32(self.mean) - _f32(other.mean)
    diff = jnp.where(self._expand(valid), diff, 0.0)
    u = jnp.where(valid, 2.0 * jnp.log(std_p / std_q), 0.0)
    shape = 0.5 * self._count() * (jnp.expm1(u) - u)
    return shape + self._reduce(0.5 * jnp.square(diff / self._expand(std_q)))

  def entropy(self) -> Array:
    """(3), differential entropy in nats [b k]; 0 where std is 0."""
    valid, std = self._safe_std()
    value = self._count() * (jnp.log(std) + 0.5 * (1 + _LOG_2PI))
    return jnp.where(valid, value, 0.0)

  def _safe_std(self) -> tuple[Array, Array]:
    std = _f32(self.std)
    valid = std > 0
    return valid, jnp.where(valid, std, 1.0)

  def _expand(self, x: Array) -> Array:
    return x.reshape(x.shape + (1,) * (self.mean.ndim - x.ndim))

  def _count(self) -> float:
    """Event dimensions a per-decision term stands for."""
    event_shape = self.mean.shape[self.std.ndim :]
    return float(math.prod(event_shape)) if self.event == 'sum' else 1.0

  def _reduce(self, x: Array) -> Array:
    axes = tuple(range(self.std.ndim, x.ndim))
    return jnp.sum(x, axes) if self.event == 'sum' else jnp.mean(x, axes)


class Categorical(struct.PyTreeNode):
  """Softmax over v choices. -inf logits forbid a choice (one must stay)."""

  logits: Array  # [b k v]

  def sample(self, keys: Array) -> Array:
    """Ids [b k] int32; `keys` as in `decision_keys`."""
    keys = decision_keys(keys, self.logits.shape[:-1])
    draw = _per_decision(jax.random.categorical, keys)
    return draw(keys, _f32(self.logits)).astype(jnp.int32)

  def log_prob(self, actions: Int[AnyArray, '*k']) -> Float32[Array, '*k']:
    """Log softmax(logits)[action], [b k]; `actions` [b k] in [0, v)."""
    logits = _f32(self.logits)
    chosen = jnp.take_along_axis(logits, actions[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)

  def kl(self, other: 'Categorical') -> Array:
    """sum_v p (log p - log q), [b k]; inf where q forbids what p allows."""
    log_p, log_q = self._log_probs(), other._log_probs()
    allowed = jnp.isfinite(log_p)
    safe_p = jnp.where(allowed, log_p, 0.0)
    safe_q = jnp.where(allowed, log_q, 0.0)
    p = jnp.where(allowed, jnp.exp(safe_p), 0.0)
    return jnp.sum(p * (safe_p - safe_q), axis=-1)

  def entropy(self) -> Array:
    """-sum_v p log p in nats, [b k]."""
    log_p = self._log_probs()
    allowed = jnp.isfinite(log_p)
    safe = jnp.where(allowed, log_p, 0.0)
    return -jnp.sum(jnp.where(allowed, jnp.exp(safe) * safe, 0.0), axis=-1)

  def _log_probs(self) -> Array:
    return jax.nn.log_softmax(_f32(self.logits), axis=-1)


class HeadCategorical(struct.PyTreeNode):
  """`Categorical` of logits that are computed a few decisions at a time.

  A vocabulary of 150,000 takes 600 kB a decision and copy of the parameters in
  float32, and as much again for gradients. Here they are made from vectors of
  width d where they are read, and made again for the gradient. Over a mesh
  every device has a copy of the parameters for its rows, which is gathered, and
  its gradients summed, once and not for every few decisions.
  """

  hidden: PyTree  # arrays [b k d]
  params: PyTree
  # (params, hidden [b s d]) -> logits [b s v]
  logits: Callable[[PyTree, PyTree], Array] = struct.field(pytree_node=False)
  chunk: int = struct.field(pytree_node=False)  # decisions of a row at a time

  def sample(self, keys: Array) -> Array:
    """Ids [b k] int32; `keys` as in `decision_keys`."""
    b, k = jax.tree.leaves(self.hidden)[0].shape[:2]
    keys = decision_keys(keys, (b, k))
    return self._over(lambda p, keys: p.sample(keys), keys)

  def log_prob(self, actions: Int[AnyArray, 'b k']) -> Float32[Array, 'b k']:
    """Log softmax(logits)[action], [b k]; `actions` [b k] in [0, v)."""
    return self._over(lambda p, a: p.log_prob(a), jnp.asarray(actions))

  def kl(self, other: 'HeadCategorical') -> Array:
    """KL(self || other), [b k]; see `Categorical`."""
    return self._over(
      lambda p, h, theirs: p.kl(Categorical(other.logits(theirs, h))),
      other.hidden,
      other.params,
    )

  def entropy(self) -> Array:
    """In nats, [b k]."""
    return self._over(lambda p, _: p.entropy(), ())

  def _over(
    self, ask: Callable[..., Array], x: PyTree, *others: PyTree
  ) -> Array:
    """Of all decisions: ask(those of a chunk, x [b chunk ...], *parameters)."""
    pieces = jax.tree.map(self._cut, (self.hidden, x))
    owners = self.params, *others
    b, k = jax.tree.leaves(self.hidden)[0].shape[:2]
    devices = layers.shards('batch')
    if b % devices:  # rows that are not split
      devices = 1

    @jax.checkpoint
    def one(piece: PyTree, params: PyTree, *others: PyTree) -> Array:
      hidden, own = piece
      return ask(Categorical(self.logits(params, hidden)), own, *others)

    if devices == 1:
      found = jax.lax.map(lambda piece: one(piece, *owners), pieces)
    else:
      cut = lambda x: x.reshape(len(x), devices, -1, *x.shape[2:])
      copies = jax.tree.map(
        lambda x: layers.over_batch(jnp.broadcast_to(x, (devices, *x.shape))),
        owners,
      )
      found = jax.lax.map(
        lambda piece: jax.vmap(one)(piece, *copies), jax.tree.map(cut, pieces)
      )
      found = found.reshape(len(found), b, -1)  # [n b chunk]
    return found.swapaxes(0, 1).reshape(b, -1)[:, :k]

  def _cut(self, x: Array) -> Array:
    """[b k ...] -> [n b chunk ...], the last one filled up with zeros."""
    b, k = x.shape[:2]
    n = -(-k // self.chunk)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x = jnp.concatenate([x, *[x[:, -1:]] * (n * self.chunk - k)], 1)
    else:
      room = ((0, 0), (0, n * self.chunk - k), *((0, 0),) * (x.ndim - 2))
      x = jnp.pad(x, room)
    return x.reshape(b, n, self.chunk, *x.shape[2:]).swapaxes(0, 1)


class Places(struct.PyTreeNode):
  """Softmax choices at several places per decision, of which some count.

  log_prob, kl and entropy are sums over `chosen` places, equation (5). The
  logits of the others get no gradient, whatever they are.
  """

  logits: Array  # [b k n v]
  chosen: Array  # [b k n] bool

  def sample(self, keys: Array) -> Array:
    """Ids [b k n] int32 of all places; `keys` as in `decision_keys`."""
    return self._safe().sample(keys)

  def log_prob(self, actions: Array) -> Array:
    """(5), [b k]; `actions` [b k n], anything at places that do not count."""
    return self._sum(self._safe().log_prob(jnp.where(self.chosen, actions, 0)))

  def kl(self, other: 'Places') -> Array:
    """Sum of KL(self || other) over the places that count here, [b k]."""
    same = Places(other.logits, self.chosen)
    return self._sum(self._safe().kl(same._safe()))

  def entropy(self) -> Array:
    """Sum of the entropies of the places that count, nats [b k]."""
    return self._sum(self._safe().entropy())

  def _safe(self) -> Categorical:
    return Categorical(
      jnp.where(self.chosen[..., None], _f32(self.logits), 0.0)
    )

  def _sum(self, x: Array) -> Array:
    return jnp.where(self.chosen, x, 0.0).sum(-1)


class HeadPlaces(struct.PyTreeNode):
  """`Places` of logits that are computed a few places at a time."""

  head: HeadCategorical  # of the k n places of a row, one behind the other
  chosen: Array  # [b k n] bool

  def sample(self, keys: Array) -> Array:
    """Ids [b k n] int32 of all places; `keys` as in `decision_keys`."""
    logits = self.head.logits(self.head.params, self.head.hidden)
    logits = logits.reshape(*self.chosen.shape, -1)
    return Places(logits, self.chosen).sample(keys)

  def log_prob(self, actions: Array) -> Array:
    """As that of `Places`."""
    said = jnp.where(self.chosen, actions, 0).reshape(len(actions), -1)
    return self._sum(self._safe().log_prob(said))

  def kl(self, other: 'HeadPlaces') -> Array:
    """As that of `Places`."""
    same = HeadPlaces(other.head, self.chosen)
    return self._sum(self._safe().kl(same._safe()))

  def entropy(self) -> Array:
    """As that of `Places`."""
    return self._sum(self._safe().entropy())

  def _safe(self) -> HeadCategorical:
    """No gradient reaches the vectors of places that do not count."""
    used = self.chosen.reshape(len(self.chosen), -1, 1)
    hidden = jax.tree.map(lambda h: jnp.where(used, h, 0), self.head.hidden)
    return self.head.replace(hidden=hidden)

  def _sum(self, x: Array) -> Array:
    return jnp.where(self.chosen, x.reshape(self.chosen.shape), 0.0).sum(-1)


class Concat(struct.PyTreeNode):
  """Decisions of unlike kinds, one part behind the other along k.

  Actions are a sequence too, those of each part; log_prob, kl and entropy are
  [b k_1 + k_2 + ...]. What they sum or average over is up to the parts.
  """

  parts: tuple[Any, ...]  # of distributions

  def sample(self, keys: Array) -> tuple[Array, ...]:
    """Actions of each part; `keys` [] or [b], folded with its number."""

    def fold(i: int) -> Array:
      if keys.ndim == 0:
        return jax.random.fold_in(keys, i)
      return jax.vmap(jax.random.fold_in, (0, None))(keys, i)

    return tuple(p.sample(fold(i)) for i, p in enumerate(self.parts))

  def log_prob(self, actions: Sequence[Array]) -> Array:
    """Of the parts, side by side [b k]."""
    pairs = zip(self.parts, actions, strict=True)
    return jnp.concatenate([p.log_prob(a) for p, a in pairs], 1)

  def kl(self, other: 'Concat') -> Array:
    """KL(self || other) of the parts, side by side [b k]."""
    pairs = zip(self.parts, other.parts, strict=True)
    return jnp.concatenate([p.kl(q) for p, q in pairs], 1)

  def entropy(self) -> Array:
    """Of the parts, side by side [b k]."""
    return jnp.concatenate([p.entropy() for p in self.parts], 1)


def joint(dist: Dist) -> Dist:
  """The same with event dimensions summed: entropies and KLs in nats."""
  if isinstance(dist, Concat):
    return Concat(tuple(map(joint, dist.parts)))
  return dist.replace(event='sum') if isinstance(dist, Gaussian) else dist
