"""The pipeline of Stable Diffusion 3: from a folder, through our samplers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import sd3_flow_grpo
from gen_rl import assemble, build, export, initial, train
from gen_rl.data import feeds, text_networks
from gen_rl.diffusion import schedules, transitions
from gen_rl.models import mmdit_files
from gen_rl.models.files import peft
from gen_rl.models.parts import lora
from gen_rl.rollout import make_rows
from gen_rl.utils import rng as rng_lib
from gen_rl.utils import tree

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')

TEXTS = ['a red square', 'two blue circles']
STEPS, GUIDANCE = 10, 4.5


def far(found, want):
  want = np.asarray(want)
  assert found.shape == want.shape
  return np.abs(np.asarray(found) - want).max() / np.abs(want).max()


@pytest.fixture(scope='module')
def config(sd3_pipeline, tmp_path_factory):
  """The published config at the size of the folder, its weights from there."""
  c = sd3_flow_grpo.get_config('tiny')
  c.released = str(sd3_pipeline[1])
  c.model.net.update(layers=3, pooled=18)
  c.policy.update(steps=STEPS, guidance_scale=GUIDANCE)
  c.eval.steps = STEPS
  c.data.embed.encoder.t5_length = 40
  c.data.truncate = True
  c.data.embed.cache = str(tmp_path_factory.mktemp('features'))
  # Rewards are to say something where the network does.
  c.rewards = dict(chroma=dict(name='saturation', weight=1.0))
  c.eval.gold = dict(jpeg=dict(name='jpeg_compressibility'))
  c.data.reader.tokenizer.name = ''
  return c


@pytest.fixture(scope='module')
def sampled(config):
  """(what the config builds, parameters, rows, samples of the ODE)."""
  built = assemble.setup(config)
  params = initial.params(config, built.policy)
  # On the host, until each device is given its part.
  read = [x for n, x in tree.named(params).items() if '_lora_' not in n]
  assert all(type(x) is np.ndarray for x in read)
  batch = dict(
    tokens=np.zeros((2, 4), np.int32), prompt_id=np.arange(2, dtype=np.int32),
    info={}, cond=built.embed.rows(TEXTS),
  )  # fmt: skip
  rows = make_rows(batch, 1, jax.random.key(0), jnp.int32(0))
  return built, params, rows, jax.jit(built.sampler)(params, rows)


def noise(rows, shape):
  drawn = rng_lib.normal(rng_lib.stream_keys(rows.keys, 'init'), shape)
  return torch.from_numpy(np.array(drawn)).permute(0, 3, 1, 2)


def drawing(rows):
  """Arguments of the pipeline for the same pictures."""
  return dict(
    prompt=TEXTS, height=16, width=16, num_inference_steps=STEPS,
    guidance_scale=GUIDANCE, max_sequence_length=40,
    latents=noise(rows, (8, 8, 16)),
  )  # fmt: skip


def test_ten_steps_with_guidance(sd3_pipeline, sampled):
  pipeline, _ = sd3_pipeline
  built, params, rows, latents = sampled
  arguments = drawing(rows)
  with torch.no_grad():
    want = pipeline(**arguments, output_type='latent').images
    pictures = pipeline(**arguments, output_type='np').images
  assert far(latents, want.permute(0, 2, 3, 1)) < 1e-4
  assert far(jax.jit(built.policy.decode)(params, latents), pictures) < 1e-4


def test_pictures_of_our_adapters(sd3_pipeline, sampled, tmp_path):
  """The pipeline draws them from the folder that a run ends with."""
  pipeline, _ = sd3_pipeline
  built, params, rows, plain = sampled
  adapted = lora.add(params, sd3_flow_grpo.LORA, 3, 5.0, jax.random.key(1))
  leaves = tree.named(adapted)
  rng = np.random.default_rng(0)
  for name, x in leaves.items():
    if name.endswith('_lora_b'):
      leaves[name] = jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32)
  adapted = tree.nest(leaves)
  latents = jax.jit(built.sampler)(adapted, rows)
  assert far(latents, plain) > 0.1
  built.policy.save(str(tmp_path), adapted)
  pipeline.load_lora_weights(str(tmp_path))
  try:
    with torch.no_grad():
      want = pipeline(**drawing(rows), output_type='np').images
  finally:
    pipeline.unload_lora_weights()
  assert far(jax.jit(built.policy.decode)(adapted, latents), want) < 1e-4


def test_the_grid_of_times():
  for steps in 2, 10, 40:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    found = schedules.sd3(steps, 3.0)
    np.testing.assert_allclose(found, scheduler.sigmas, atol=1e-6)


def by_flow_grpo(x, v, s, s_next, a, first):
  """Equation 9 of arXiv 2505.05470, and its log-prob, in float64."""
  sigma = a * np.sqrt(s / (1 - (first if s == 1 else s)))
  dt = s_next - s
  mean = x * (1 + sigma**2 / (2 * s) * dt)
  mean += v * (1 + sigma**2 * (1 - s) / (2 * s)) * dt
  return mean, sigma * np.sqrt(-dt)


def test_trained_steps_are_those_of_flow_grpo(sampled):
  """Mean, deviation and log-prob of every decision of a rollout."""
  built, params, rows, _ = sampled
  traj = jax.jit(built.policy.rollout)(params, rows, jnp.int32(0))
  dist = jax.jit(built.policy.ops['dist'])(params, traj)
  v = np.float64(jax.jit(built.policy.ops['velocity'])(params, traj))
  grid = np.float64(schedules.sd3(STEPS, 3.0))
  assert traj.times.shape == (2, STEPS - 1, 2)
  for j in range(STEPS - 1):
    x, action = (np.float64(a[:, j]) for a in (traj.states, traj.actions))
    mean, std = by_flow_grpo(x, v[:, j], grid[j], grid[j + 1], 0.7, grid[1])
    np.testing.assert_allclose(dist.mean[:, j], mean, atol=1e-5)
    np.testing.assert_allclose(np.ravel(dist.std[:, j])[0], std, rtol=1e-5)
    log_prob = -((action - mean) ** 2) / (2 * std**2) - np.log(std)
    log_prob -= np.log(np.sqrt(2 * np.pi))
    want = log_prob.mean((1, 2, 3))
    np.testing.assert_allclose(traj.log_prob[:, j], want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
      dist.log_prob(traj.actions)[:, j], want, rtol=1e-5, atol=1e-5
    )


def test_steps_that_keep_coefficients():
  """Flow-CPS (arXiv 2509.05952) on the same grid, in float64."""
  grid = np.float64(schedules.sd3(STEPS, 3.0))
  rng = np.random.default_rng(0)
  x, v = rng.normal(size=(2, 3, 5))
  for s, s_next in zip(grid[:-1], grid[1:], strict=True):
    std = s_next * np.sin(0.8 * np.pi / 2)
    clean, pure = x - s * v, x + (1 - s) * v
    mean = (1 - s_next) * clean + np.sqrt(s_next**2 - std**2) * pure
    t = np.full((3,), 1.0, np.float32)
    found = transitions.cps()(
      jnp.float32(x), jnp.float32(v), s * t, s_next * t, 0.8 * t
    )
    np.testing.assert_allclose(found[0], mean, atol=1e-5)
    np.testing.assert_allclose(np.ravel(found[1])[0], std, atol=1e-5)


def test_a_run_goes_on_from_adapters(config, sampled, tmp_path):
  """Of any rank below its own; and what else it trains is not lost."""
  built, params, *_ = sampled
  given = lora.add(
    lora.merge(params), r'/attn/to_q$', 3, 5.0, jax.random.key(1)
  )
  given['net'] = jax.tree.map(jnp.ones_like, given['net'])
  path = tmp_path / 'a.safetensors'
  peft.save(path, given['net'], mmdit_files.names_of(3, 1, True))
  c = config.copy_and_resolve_references()
  c.lora.start = str(path)
  started = initial.params(c, assemble.setup(c).policy)
  kernel = 'net/blocks/attn/to_q/kernel'
  leaves = tree.named(started)
  a, b, scale = (leaves[f'{kernel}_lora_{x}'] for x in ('a', 'b', 'scale'))
  change = scale[..., None, None] * (a @ b)
  np.testing.assert_allclose(change, np.full(change.shape, 3.0), atol=1e-5)
  assert not leaves['net/blocks/attn/to_k/kernel_lora_b'].any()
  # Written whole, as diffusers has no file of adapters and kernels.
  c.trainable = r'(_lora_[ab]|/proj_out/kernel)$'
  c.export = 'whole'
  leaves['net/proj_out/kernel'] = leaves['net/proj_out/kernel'] + 0.1
  export.write(c, tmp_path, built.policy, tree.nest(leaves), steps=1)
  model = diffusers.SD3Transformer2DModel.from_pretrained(
    tmp_path / 'whole' / 'transformer'
  )
  found = model.proj_out.weight.detach().numpy().T
  np.testing.assert_array_equal(found, leaves['net/proj_out/kernel'])
  q = model.transformer_blocks[1].attn.to_q.weight.detach().numpy().T
  merged = lora.merge(started)['net']['blocks']['attn']['to_q']['kernel'][0]
  np.testing.assert_allclose(q, merged, atol=1e-6)
  c.lora.pattern = ''
  with pytest.raises(build.ConfigError, match=r"lora\.pattern is ''"):
    assemble.setup(c)


def test_a_run_from_the_folder(sd3_pipeline, config, tmp_path, monkeypatch):
  """Two updates of adapters on released weights; features from their files."""
  in_memory, made, load = [], train.Run, text_networks.load
  encoders = lambda: sum(x.shape == (120, 32) for x in jax.live_arrays())

  def loaded(*args):
    encode = load(*args)
    in_memory.append(encoders())
    return encode

  def run(*args):
    in_memory.append(encoders())
    return made(*args)

  monkeypatch.setattr(text_networks, 'load', loaded)
  monkeypatch.setattr(train, 'Run', run)
  here = encoders()
  c = config.copy_and_resolve_references()
  c.policy.steps = c.eval.steps = 4
  c.export = 'adapters'
  first = train.train_and_evaluate(c, str(tmp_path / 'run'))
  assert first['steps'] == 2 and first['updates_skipped'] == 0
  pipeline = sd3_pipeline[0]
  pipeline.load_lora_weights(str(tmp_path / 'run' / 'adapters'))
  assert pipeline.get_active_adapters()
  pipeline.unload_lora_weights()
  # Encoders were there once, and no more when the state was made.
  assert in_memory == [here + 1, here]
  # Another process does not load an encoder.
  monkeypatch.setattr(text_networks, 'load', None)
  assert feeds.evaluation(c, assemble.setup(c))[0]['cond']['text'].any()


def test_a_score_that_means_nothing_is_refused(config):
  c = config.copy_and_resolve_references()
  c.eval.gold = dict(hps=dict(name='hps', folder='drawn'))
  with pytest.raises(build.ConfigError, match=r'eval\.gold\.hps\.folder is "d'):
    assemble.setup(c)


def test_another_model_than_the_config_says(config):
  c = config.copy_and_resolve_references()
  c.model.net.layers = 4
  built = assemble.setup(c)
  with pytest.raises(build.ConfigError, match='there layers=3 and not 4'):
    initial.params(c, built.policy)
  c.model.net.layers = 3
  c.model.vae.scale = 1.0
  built = assemble.setup(c)
  with pytest.raises(build.ConfigError, match=r'vae holds .* scale=1\.5305'):
    initial.params(c, built.policy)
