"""Rules: what was said is compared with what is right, token by token.

Media are token ids [b k], padded after the end token. What is right comes with
the prompt: info "answer" [b a], closed by the end token and padded. All rules
are jittable. A wrong or unparsable answer scores 0; it is a judgement.
"""

import jax.numpy as jnp
from jaxtyping import Bool, Int

from gen_rl.build import ConfigError
from gen_rl.types import Array, Reward, RewardInputs, RewardOut


def _answer(inputs: RewardInputs) -> Array:
  if 'answer' not in inputs.info:
    raise ConfigError(
      'this reward compares with the "answer" of a prompt, and these prompts '
      'have none; use data.prompts.name="shapes_questions" or a file whose '
      'lines have an answer'
    )
  return inputs.info['answer']


def same(
  said: Int[Array, 'b k'], right: Int[Array, 'b a']
) -> Bool[Array, ' b']:
  """Whether two padded token sequences are equal, whatever their padding."""
  n = max(said.shape[1], right.shape[1])
  said, right = (
    jnp.pad(x, ((0, 0), (0, n - x.shape[1]))) for x in (said, right)
  )
  return (said == right).all(1)


def exact_match() -> Reward:
  """1 where what was said is the answer, its end included, else 0.

  As No-Thinking-CLS-RL (arXiv 2503.16188) rewards it: nothing but the answer.
  """

  def score(params, inputs: RewardInputs, key) -> RewardOut:
    del params, key
    right = same(inputs.media, _answer(inputs))
    return RewardOut(right.astype(jnp.float32), {}, jnp.ones(right.shape, bool))

  return Reward('exact_match', (), score)
