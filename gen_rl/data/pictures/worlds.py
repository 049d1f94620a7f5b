"""Pictures of the embedded worlds, every one drawn afresh on the device."""

import jax
import jax.numpy as jnp

from gen_rl import build, worlds
from gen_rl.data.pictures.given import Encode, Shared, member, with_wrong
from gen_rl.fields import Fraction, Index, NonNegative, Seed, Spec
from gen_rl.types import Array, PyTree, Rows
from gen_rl.utils import rng, tree
from gen_rl.worlds import inked, shapes
from gen_rl.worlds.world import World


def world_pictures(
  world: Spec,
  caption_noise: Fraction = 0.0,
  shared: bool = False,
  shots: Index = 0,
  shots_seed: Seed = 0,
) -> Encode:
  """Renders of what the prompts say.

  Args:
    world: whose sentences they are, a function of gen_rl.worlds.
    caption_noise: share of pictures that contradict their caption in one
      thing, as web captions do.
    shared: the rows of a prompt get one picture, which they are asked about.
    shots: pictures that there are of a prompt, few-shot learning; each time one
      of them is drawn, all equally likely. 0: there is always a new one.
    shots_seed: which they are.
  """
  of = build.build(worlds, world)
  return _renders(of, caption_noise, shared, shots, shots_seed)


def _renders(
  of: World,
  caption_noise: float,
  shared: bool = False,
  shots: int = 0,
  shots_seed: int = 0,
) -> Encode:
  def encode(rows: Rows) -> tuple[Array, PyTree]:
    facts = of.facts_of(rows.info)
    own = rows.group_keys if shared else rows.keys
    if shots:
      own = _of_few(own, rows.group, shots, shots_seed)
    if caption_noise:
      keys = rng.stream_keys(own, 'caption noise')
      wrong = jax.vmap(jax.random.bernoulli, (0, None))(keys, caption_noise)
      keys = rng.stream_keys(own, 'mutation')
      facts = tree.where(wrong, jax.vmap(of.mutate)(keys, facts), facts)
    keys = rng.stream_keys(own, 'picture')
    return jax.vmap(of.render)(keys, facts) * 2.0 - 1.0, rows.cond

  return Shared(encode) if shared else encode


def _of_few(keys: Array, ids: Array, shots: int, seed: int) -> Array:
  """Keys [b] of one of `shots` pictures that a prompt has, by the row's key."""
  keys = rng.stream_keys(keys, 'shot')
  which = jax.vmap(jax.random.randint, (0, None, None, None))(
    keys, (), 0, shots
  )
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  pool = rng.stream_keys(jax.random.key(seed), 'shots')
  return jax.vmap(jax.random.fold_in)(fold(pool, ids), which)


def world_preferences(world: Spec, group_size: int) -> Encode:
  """Pairs of renders: the first shows the prompt, the second nearly.

  Goes with the reward `ranked`, data.group_size=2 and a preference objective.

  Args:
    world: see `world_pictures`.
    group_size: of the data; 2.
  """
  of = build.build(worlds, world)

  def encode(rows: Rows) -> tuple[Array, PyTree]:
    wrong = member(rows, group_size, 'a rollout of preferences') == 1
    keys = rng.stream_keys(rows.keys, 'mutation')
    facts = of.facts_of(rows.info)
    facts = tree.where(wrong, jax.vmap(of.mutate)(keys, facts), facts)
    keys = rng.stream_keys(rows.group_keys, 'picture')
    return jax.vmap(of.render)(keys, facts) * 2.0 - 1.0, rows.cond

  return encode


def shapes_pictures(
  caption_noise: Fraction = 0.0, shared: bool = False
) -> Encode:
  """`world_pictures` of ShapesWorld."""
  return world_pictures('shapes', caption_noise, shared)


def shapes_inked(caption_noise: Fraction = 0.0) -> Encode:
  """The same scenes in another style, outlined in ink on paper.

  Args:
    caption_noise: see `world_pictures`.
  """
  world = build.build(worlds, 'shapes')._replace(render=inked.render)
  return _renders(world, caption_noise)


def shapes_preferences(group_size: int) -> Encode:
  """`world_preferences` of ShapesWorld."""
  return world_preferences('shapes', group_size)


def shapes_scenes(noise: NonNegative = 0.0) -> Encode:
  """Renders ShapesWorld and keeps what was drawn: labels for a detector.

  `cond` gets "scene", a `shapes.Scene` with rows [b ...].

  Args:
    noise: pixel noise, the standard deviation of the noisiest pictures in
      units of [0, 1]; each picture's is uniform up to it.
  """
  of = build.build(worlds, 'shapes')

  def encode(rows: Rows) -> tuple[Array, PyTree]:
    keys = rng.stream_keys(rows.keys, 'picture')
    scene = jax.vmap(shapes.compose)(keys, of.facts_of(rows.info))
    image = jax.vmap(shapes.draw)(scene)
    if noise:
      level = rng.uniform(rng.stream_keys(rows.keys, 'noise level'), ())
      grain = rng.normal(rng.stream_keys(rows.keys, 'noise'), image.shape[1:])
      image += noise * level[:, None, None, None] * grain
      image = jnp.clip(image, 0.0, 1.0)
    return image * 2.0 - 1.0, {**rows.cond, 'scene': scene}

  return encode


def prompt_pairs(group_size: int, caption_noise: Fraction = 0.0) -> Encode:
  """One render under two prompts, a true and a false one (TDPO).

  The source is `shapes_contrasts`, whose false sentences the second row of a
  pair gets. Goes with the reward `ranked` and data.group_size=2.

  Args:
    group_size: of the data; 2.
    caption_noise: share of pairs whose picture contradicts its true prompt.
  """
  draw = shapes_pictures(caption_noise)

  def encode(rows: Rows) -> tuple[Array, PyTree]:
    second = member(rows, group_size, 'rollout "prompt_pairs"') == 1
    rows, cond = with_wrong(rows, second)
    picture, _ = draw(rows.replace(keys=rows.group_keys))
    return picture, cond

  return encode
