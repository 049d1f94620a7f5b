"""Pictures in another style: what they look like, and how one tells."""

import jax
import jax.numpy as jnp
import numpy as np

from gen_rl import rewards
from gen_rl.build import build
from gen_rl.types import RewardInputs
from gen_rl.worlds import grammar, inked, shapes, shapes_oracle

KEY = jax.random.key(0)


def specs(every):
  found = [grammar.spec_arrays(p.spec) for p in grammar.prompts()[::every]]
  return {name: np.stack([s[name] for s in found]) for name in found[0]}


def test_a_square_by_hand():
  """Radius 3.5 at (5, 5): pixels 2 to 8 covered, 1 and 9 are the outline."""
  none = jnp.full(4, -1)
  scene = shapes.Scene(
    shape=none.at[0].set(grammar.SHAPES.index('square')),
    color=jnp.zeros(4, int), size=jnp.zeros(4, int),
    center=jnp.full((4, 2), 5), word=jnp.int32(-1), word_color=jnp.int32(0),
    word_corner=jnp.array([8, 3]), background=jnp.float32(0.9),
  )  # fmt: skip
  picture = np.array(jax.jit(inked.draw)(scene, jnp.float32(0.3)))
  want = np.tile(np.float32([0.3, 0.291, 0.27]), (24, 24, 1))
  want[1:10, 1:10] = 0.12
  want[2:9, 2:9] = shapes.PALETTE[0]
  np.testing.assert_allclose(picture, want, atol=1e-6)


def test_styles_are_told_apart_and_the_oracle_reads_both():
  spec = specs(every=7)
  keys = jax.random.split(KEY, len(spec['word']))
  judge, look = jax.jit(shapes_oracle.judge), jax.jit(inked.look)
  right = {}
  for name, render in dict(plain=shapes.render, inked=inked.render).items():
    images = jax.jit(jax.vmap(render))(keys, spec)
    found = look(images)
    for part in found:
      assert (part == (name == 'inked')).mean() > 0.99, name
    # So do they where a policy's pictures are as grainy as that.
    grain = 0.02 * jax.random.normal(KEY, images.shape)
    for part in look(jnp.clip(images + grain, 0, 1)):
      assert (part == (name == 'inked')).mean() > 0.99, name
    right[name] = judge(images, spec)[1].mean()
  assert right['plain'] > 0.995 and right['inked'] > 0.985


def test_half_a_style():
  """Light backgrounds without outlines, and outlines on dark ones."""
  spec = specs(every=50)
  keys = jax.random.split(KEY, len(spec['word']))

  @jax.jit
  def halves(keys, spec):
    scene = jax.vmap(shapes.compose)(keys, spec)
    level = jnp.full(len(keys), 0.3)
    light = jax.vmap(shapes.draw)(scene._replace(background=level))
    dark = jax.vmap(inked.draw)(scene, jnp.full_like(level, 0.22))
    return inked.look(light), inked.look(dark)

  light, dark = halves(keys, spec)
  assert light.paper.mean() > 0.99 and light.outline.mean() < 0.01
  assert dark.paper.mean() < 0.01 and dark.outline.mean() > 0.95


def test_the_reward():
  """A light picture without colours has no outline; NaN is not scored."""
  media = jnp.full((2, 24, 24, 3), 0.3).at[1, 0, 0, 0].set(jnp.nan)
  for of, score in dict(paper=1.0, outline=0.0, both=0.0).items():
    reward = build(rewards, dict(name='shapes_inked', of=of))
    out = reward.score((), RewardInputs(media, {}, 2), KEY)
    assert out.score[0] == score and reward.verdict
    np.testing.assert_array_equal(out.valid, [True, False])
