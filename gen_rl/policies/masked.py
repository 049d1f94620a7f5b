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

from collections.abc import Mapping
import functools
from typing import Any, Literal

from gen_rl.build import ConfigError
from gen_rl.fields import Count, Fraction, Index, NonNegative, Positive
from gen_rl.models.parts.layers import MaskNet
from gen_rl.policies import coded, guidance
from gen_rl.policies import filling as filling_lib
from gen_rl.types import Policy


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
  head_chunk: Index = 0,
) -> Policy:
  """A policy that fills all places of a row in a few steps.

  Its trajectories have k = T decisions: states are `filling.State`, actions
  [b T n] the codes committed, v at all other places. Log-probs are sums over
  the places of a step, (5): there are few at first and many at last.

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
    head_chunk: places of a row whose logits are held at a time when decisions
      are scored, see `distributions.HeadCategorical`; 0: all.

  Raises:
    ConfigError: numbers out of range, more steps than places.
  """
  _check(temperature, choice_temperature, score)
  guidance.check(guidance_gradient)
  if head_chunk and net.hidden is None:
    raise ConfigError(
      f'policy.head_chunk={head_chunk}: this network has no head of its own'
    )
  counts = tuple(filling_lib.schedule(net.length, steps).tolist())
  filling = filling_lib.Filling(
    net, counts, temperature,
    choice_temperature, guidance_scale, guidance_gradient, score == 'guided',
    null_prob, head_chunk,
  )  # fmt: skip
  of_filling = (filling_lib.dist, filling_lib.nll, filling_lib.greedy)
  return Policy(
    net.init,
    functools.partial(filling_lib.rollout, filling),
    lambda params, latent: latent,
    {op.__name__: functools.partial(op, filling) for op in of_filling},
    axes=net.axes,
  )


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
  head_chunk: Index = 0,
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
    head_chunk: see `masked`.

  Raises:
    ConfigError: the net has other codes or places than the codec, or as of
      `masked`.
    WeightsError: when initialised, the file does not fit the codec.
  """
  book = coded.codec_of(codec, net.vocab, net.length)
  said = masked(
    net, steps, temperature, choice_temperature, guidance_scale,
    guidance_gradient, score, null_prob, head_chunk,
  )  # fmt: skip
  return coded.coded(said, book, codec_weights)
