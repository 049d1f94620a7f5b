r"""A masked code model as a policy: every decision commits several places.

MaskGIT (arXiv 2202.04200). All n codes of a picture are masked at first. Step t
of T draws a code for each masked place j, all at once, and commits those it is
most confident of; the others stay masked. With l the network's logits given the
prompt and the codes so far (the state s_t), l0 those given no prompt, G Gumbel
noise and M_t the places still masked,

  g      = l0 + w (l - l0),  p_j = softmax(g_j / tau)                     (1)
  z_j    ~ p_j,  c_j = log p_j(z_j) + a (1 - t / T) G_j       j in M_t    (2)
  C_t    = the k_t places of M_t with the largest c_j                     (3)
  m_t    = min(max(floor(n cos(pi t / 2 T)), T - t), m_{t-1} - 1)         (4)

and k_t = m_{t-1} - m_t, m_0 = n: the cosine schedule, kept from leaving a step
without a code to commit. The first w = 1 where there is no guidance. What is
scored is

  log p(step t) = sum_{j in C_t} log p_j(z_j)                             (5)

of the codes that stay, given where they are, as in the field (Show-o, arXiv
2408.12528, and what is trained on it). It is not the whole probability of a
step, which is

  P(C_t, z_C) = prod_{j in C_t} p_j(z_j)
                  E[ P(C_t | z, p) over z_j ~ p_j, j in M_t \ C_t ]       (6)

The last factor, the choice of places, is taken for a part of the world: it is
not trained, though confidence depends on the parameters. Where it looks at the
codes, those that stay are likelier than p_j says, and the mean of the gradient
of (5) is not zero: the policy gradient is biased, as in the papers, by an
amount that falls with a. With `choice_temperature=inf` places are taken in
random order, the last factor is a constant, and it is exact.

'guided' and 'cond' scores are those of `tokens`: log p_j of (1), or of
softmax(l / tau). `nll` is the loss of pretraining,

  mean over masked j of -log softmax(l_j)[z_j]                            (7)

with ceil(n cos(pi u / 2)) places masked at random, u uniform on [0, 1).
"""

from collections.abc import Callable, Mapping
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl.build import ConfigError
from gen_rl.distributions import Categorical, Places
from gen_rl.fields import Count, Fraction, NonNegative, Positive
from gen_rl.models.parts.layers import MaskNet
from gen_rl.policies import coded, guidance
from gen_rl.types import Array, Params, Policy, PyTree, Rows, Trajectory
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


def _check(temperature, choice_temperature, score) -> None:
  if temperature <= 0 or not choice_temperature >= 0:
    raise ConfigError(
      f'policy.temperature={temperature} must be positive and '
      f'policy.choice_temperature={choice_temperature} not negative; what is '
      'most likely is said by eval.sampler="greedy"'
    )
  if score not in ('guided', 'cond'):
    raise ConfigError(f"policy.score is {score!r}: it is 'guided' or 'cond'")


def masked(
  net: MaskNet,
  steps: Count = 8,
  temperature: Positive = 1.0,
  choice_temperature: NonNegative = 4.5,
  guidance_scale: NonNegative = 1.0,
  guidance_gradient: Literal['both', 'conditional'] = 'both',
  score: Literal['guided', 'cond'] = 'guided',
  null_prob: Fraction = 0.0,
) -> Policy:
  """A policy that fills all places of a row in a few steps.

  Its trajectories have k = T decisions: states are `State`, actions [b T n]
  the codes committed, v at all other places. Log-probs are sums over the
  places of a step, (5): there are few at first and many at last.

  Tested, not measured.

  Args:
    net: of `models.mask_image`.
    steps: T.
    temperature: tau of (1).
    choice_temperature: a of (2); inf takes places in random order.
    guidance_scale: w of (1), 1 is off.
    guidance_gradient: see `tokens`.
    score: whose log-probs are trained.
    null_prob: share of rows that lose their prompt in `nll`, for guidance.

  Raises:
    ConfigError: numbers out of range, more steps than places.
  """
  _check(temperature, choice_temperature, score)
  guidance.check(guidance_gradient)
  counts = schedule(net.length, steps)
  n, guided = net.length, guidance_scale != 1

  def logits_of(
    params: Params, codes: Array, prompts: list, free: Params
  ) -> tuple[Array, Array]:
    """(what is sampled, what is scored) [b n v], divided by tau; float32.

    Args:
      params: of the net.
      codes: [b n].
      prompts: encoded, and where guided the null ones too.
      free: parameters of the unconditional half.
    """
    cond = net.apply(params, codes, prompts[0]).astype(jnp.float32)
    if not guided:
      return (cond / temperature,) * 2
    null = net.apply(free, codes, prompts[1]).astype(jnp.float32)
    g = null + guidance_scale * (cond - null)
    return g / temperature, (g if score == 'guided' else cond) / temperature

  def prompts_of(params: Params, cond: PyTree, free: Params) -> list:
    ready = [net.encode(params, cond)]
    return ready + ([net.encode(free, net.null(cond))] if guided else [])

  def generate(
    params: Params,
    rows: Rows,
    pick: Callable[[Array, Array], Array],
    confidence: Callable[[Array, Array], Array],
  ) -> tuple[State, Array, Array, Array]:
    """(states, actions [b T n], log-probs (5) [b T], codes [b n]).

    Args:
      params: of the net.
      rows: what is asked.
      pick: (logits g / tau [b n v], step) -> codes [b n].
      confidence: (log p of the codes [b n], step) -> c of (2) [b n].
    """
    b = rows.group.shape[0]
    prompts = prompts_of(params, rows.cond, params)

    def body(i: Array, carry: tuple) -> tuple:
      codes, kept = carry
      g, scored = logits_of(params, codes, prompts, params)
      said = pick(g, i)
      gap = codes == net.vocab
      sure = confidence(Categorical(g).log_prob(said), i)
      sure = jnp.where(gap, sure, -jnp.inf)
      new = gap & _largest(sure, jnp.asarray(counts)[i])
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

  def rollout(params: Params, rows: Rows, step: Array) -> Trajectory:
    del step

    def pick(logits: Array, i: Array) -> Array:
      return Categorical(logits).sample(rng.step_keys(rows.keys, i))

    def confidence(log_p: Array, i: Array) -> Array:
      keys = rng.stream_keys(rng.step_keys(rows.keys, i), 'choice')
      noise = jax.vmap(lambda key: jax.random.gumbel(key, (n,)))(keys)
      if math.isinf(choice_temperature):
        return noise
      return log_p + choice_temperature * (1 - (i + 1) / steps) * noise

    states, actions, log_prob, codes = generate(params, rows, pick, confidence)
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

  def greedy(params: Params, rows: Rows) -> Array:
    return generate(
      params, rows, lambda logits, _: logits.argmax(-1), lambda log_p, _: log_p
    )[-1]

  def dist(params: Params, traj: Trajectory) -> Places:
    free = guidance.unconditional(params, guidance_gradient)
    prompts = prompts_of(params, traj.cond, free)
    prompts = jax.tree.map(lambda x: jnp.repeat(x, steps, 0), prompts)
    codes = traj.states.codes.reshape(-1, n)
    _, scored = logits_of(params, codes, prompts, free)
    scored = scored.reshape(*traj.actions.shape, net.vocab)
    return Places(scored, traj.states.committed)

  def nll(params: Params, traj: Trajectory, keys: Array) -> Array:
    x, cond = traj.sample, traj.cond
    if null_prob > 0:
      drop_keys = rng.stream_keys(keys, 'null')
      drop = jax.vmap(jax.random.bernoulli, (0, None))(drop_keys, null_prob)
      cond = tree.where(drop, net.null(cond), cond)
    u = rng.uniform(rng.stream_keys(keys, 'rate'), (1,))
    count = jnp.maximum(jnp.ceil(n * jnp.cos(jnp.pi / 2 * u)), 1.0)
    gap = _largest(rng.uniform(rng.stream_keys(keys, 'places'), (n,)), count)
    codes = jnp.where(gap, net.vocab, x)
    logits = net.apply(params, codes, net.encode(params, cond))
    return -Places(logits, gap).log_prob(x) / count[:, 0]

  def decode(params: Params, latent: Array) -> Array:
    del params
    return latent

  ops = dict(dist=dist, nll=nll, greedy=greedy)
  return Policy(net.init, rollout, decode, ops, axes=net.axes)


def masked_image(
  net: MaskNet,
  codec: Mapping[str, Any],
  codec_weights: str = '',
  steps: Count = 8,
  temperature: Positive = 1.0,
  choice_temperature: NonNegative = 4.5,
  guidance_scale: NonNegative = 1.0,
  guidance_gradient: Literal['both', 'conditional'] = 'both',
  score: Literal['guided', 'cond'] = 'guided',
  null_prob: Fraction = 0.0,
) -> Policy:
  """A masked policy whose codes a codec turns into a picture.

  Parameters are dict(net, codec), see `coded.coded`.

  Tested, not measured.

  Args:
    net: of `models.mask_image`, as many codes and places as the codec has.
    codec: spec of a codec of `models`.
    codec_weights: of the codec, see `coded.coded`.
    steps: see `masked`.
    temperature: see `masked`.
    choice_temperature: see `masked`.
    guidance_scale: see `masked`.
    guidance_gradient: see `masked`.
    score: see `masked`.
    null_prob: see `masked`.

  Raises:
    ConfigError: the net has other codes or places than the codec, or as of
      `masked`.
    WeightsError: when initialised, the file does not fit the codec.
  """
  book = coded.codec_of(codec, net.vocab, net.length)
  said = masked(
    net, steps, temperature, choice_temperature, guidance_scale,
    guidance_gradient, score, null_prob,
  )  # fmt: skip
  return coded.coded(said, book, codec_weights)
