"""Sampling of Stable Diffusion and LCM against diffusers, same noise given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_rl import rollout
from gen_rl.diffusion import ddpm, process, schedules, transitions
from gen_rl.models import unet, unet_files
from gen_rl.policies import denoising, ode
from gen_rl.utils import rng

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')
torch.set_num_threads(1)  # small products; other processes have the cores

BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear')
# The scheduler_config.json of Stable Diffusion 1.5.
SD15 = BETAS | dict(
  clip_sample=False, set_alpha_to_one=False, steps_offset=1,
  prediction_type='epsilon',
)  # fmt: skip
B, L, D = 2, 5, 12
GUIDANCE = 5.0


def vp(x, s):
  """[b h w c] of the flow at s -> as it is in the discrete process."""
  return np.asarray(x) / np.hypot(1 - s, s)


def first(x):
  return torch.from_numpy(np.array(x, np.float32)).permute(0, 3, 1, 2)


def last(x):
  return x.detach().permute(0, 2, 3, 1).numpy()


def error(found, want):
  assert found.shape == want.shape
  return np.abs(np.asarray(found) - want).max() / np.abs(want).max()


@pytest.mark.parametrize(
  'betas', ['scaled_linear', 'linear', 'squaredcos_cap_v2']
)
def test_process(betas):
  """Signal and noise of every level, and which level a time is."""
  theirs = diffusers.DDIMScheduler(**BETAS | dict(beta_schedule=betas))
  square = theirs.alphas_cumprod.numpy().astype(np.float64)
  s = ddpm.flow_times(betas, 0.00085, 0.012)
  want = np.sqrt(1 - square) / (np.sqrt(square) + np.sqrt(1 - square))
  np.testing.assert_allclose(s, want, atol=5e-6)
  found = ddpm.level(jnp.asarray(s, jnp.float32), s)
  np.testing.assert_array_equal(found, np.arange(1000))
  between = jnp.asarray([0.0, (s[7] + s[8]) / 2, 1.0], jnp.float32)
  np.testing.assert_allclose(ddpm.level(between, s), [0, 7.5, 999], atol=1e-3)


@pytest.mark.parametrize('steps', [1, 7, 10, 50])
@pytest.mark.parametrize('end', ['first', 'data'])
def test_ddim_grid(steps, end):
  theirs = diffusers.DDIMScheduler(
    **SD15 | dict(set_alpha_to_one=end == 'data')
  )
  theirs.set_timesteps(steps)
  square = [
    *theirs.alphas_cumprod[theirs.timesteps],
    theirs.final_alpha_cumprod,
  ]
  alpha, sigma = np.sqrt(square), np.sqrt(1 - np.array(square))
  found = schedules.ddim(steps, end=end)
  np.testing.assert_allclose(found, sigma / (alpha + sigma), atol=2e-6)
  levels = ddpm.level(found[:-1], ddpm.flow_times())
  np.testing.assert_array_equal(levels, theirs.timesteps)


def test_other_grids():
  times = ddpm.flow_times()
  theirs = diffusers.DDIMScheduler(**SD15 | dict(timestep_spacing='trailing'))
  theirs.set_timesteps(10)
  found = ddpm.level(schedules.ddim(10, spacing='trailing')[:-1], times)
  np.testing.assert_array_equal(found, theirs.timesteps)
  lcm = diffusers.LCMScheduler()
  for steps in (1, 4, 7, 50):
    lcm.set_timesteps(steps)
    grid = schedules.lcm(steps)
    assert grid[-1] == 0
    np.testing.assert_array_equal(ddpm.level(grid[:-1], times), lcm.timesteps)
  with pytest.raises(ValueError, match='steps=51'):
    schedules.lcm(51)
  with pytest.raises(ValueError, match='steps=7.*has to divide 1000'):
    schedules.ddim(7, spacing='trailing')
  with pytest.raises(ValueError, match='down to 200; there are levels 0..999'):
    schedules.ddim(10, offset=200)


@pytest.mark.parametrize('eta', [0.0, 0.4, 1.0])
@pytest.mark.parametrize('prediction', ['epsilon', 'v_prediction'])
def test_ddim_steps(eta, prediction):
  """Mean and standard deviation of every step, the last one with noise too."""
  config = SD15 | dict(prediction_type=prediction)
  theirs = diffusers.DDIMScheduler(**config)
  theirs.set_timesteps(10)
  options = unet_files.process(theirs.config)
  assert options.pop('boundary') is None
  assert options.pop('prediction') == prediction
  times, grid = ddpm.flow_times(**options), schedules.ddim(10)
  draw = np.random.default_rng(0)
  x, out = draw.normal(size=(2, 10, 4, 4, 3)).astype(np.float32)
  norm = np.hypot(1 - np.asarray(grid), grid)
  at = x * norm[:-1, None, None, None]
  v = ddpm.velocity(
    lambda *_: jnp.asarray(out), at, grid[:-1], times, prediction
  )
  mean, std = transitions.ddim()(at, v, grid[:-1], grid[1:], eta)
  for i, t in enumerate(theirs.timesteps):
    a, b = first(x[i : i + 1]), first(out[i : i + 1])
    ends = [
      theirs.step(
        b, t, a, eta, variance_noise=torch.full_like(a, z)
      ).prev_sample
      for z in (0.0, 1.0)
    ]
    want = last(ends[0])
    assert error(mean[i : i + 1] / norm[i + 1], want) < 1e-5
    want = float((ends[1] - ends[0]).double().mean()) if eta else 0.0
    np.testing.assert_allclose(std[i] / norm[i + 1], want, rtol=1e-3, atol=1e-6)
    assert eta == 0 or want > 0.002


def test_beyond_the_last_level():
  """From pure noise, as samplers begin: the last level is asked with it."""
  times = ddpm.flow_times()
  x = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
  asked = []

  def predict(x, i):
    asked.append((x, i))
    return 0.3 * x

  s = jnp.asarray([1.0, times[-1]], jnp.float32)
  norm = np.hypot(1 - times[-1], times[-1])
  x[1] *= norm
  v = ddpm.velocity(predict, x, s, times)
  ((seen, level),) = asked
  np.testing.assert_array_equal(level, 999)
  np.testing.assert_allclose(seen, x / np.array([1, norm])[:, None, None, None])
  alpha, sigma = (1 - times[-1]) / norm, times[-1] / norm
  x0 = process.x0_from_velocity(x, v, s)
  want = np.asarray(seen) * (1 - 0.3 * sigma) / alpha
  np.testing.assert_allclose(x0, want, rtol=1e-4, atol=1e-4)


def small(**options):
  torch.manual_seed(0)
  model = diffusers.UNet2DConditionModel(
    sample_size=8, block_out_channels=(8, 16), layers_per_block=1,
    down_block_types=['CrossAttnDownBlock2D', 'DownBlock2D'],
    up_block_types=['UpBlock2D', 'CrossAttnUpBlock2D'], norm_num_groups=4,
    cross_attention_dim=D, attention_head_dim=4, **options,
  ).eval()  # fmt: skip
  with torch.no_grad():
    for x in model.parameters():
      x.add_(0.1 * torch.randn_like(x))
  return model


def rows_of():
  draw = np.random.default_rng(1)
  text = {
    name: jnp.asarray(draw.normal(size=(B, L, D)), jnp.float32)
    for name in ('text', 'null_text')
  }
  batch = dict(
    tokens=np.zeros((B, 1), np.int32), cond=text, info={},
    prompt_id=jnp.arange(B),
  )  # fmt: skip
  return rollout.make_rows(batch, 1, jax.random.key(0), jnp.int32(0))


def start_and_noise(policy, params, traj):
  """What a trajectory began with, and the noise of its decisions."""
  dist = jax.jit(policy.ops['dist'])(params, traj)
  std = np.asarray(dist.std)[..., None, None, None]
  noise = (np.asarray(traj.actions) - np.asarray(dist.mean)) / std
  assert 0.8 < noise.std() < 1.2
  start = vp(traj.states[:, 0], float(traj.times[0, 0, 0]))
  return first(start), [first(noise[:, i]) for i in range(noise.shape[1])]


def texts(rows):
  text, null = (
    torch.from_numpy(np.array(rows.cond[name]))
    for name in ('text', 'null_text')
  )
  return text, null


class Ancestral(diffusers.DDIMScheduler):
  """Takes noise that it is given, and none in the last step."""

  def step(self, model_output, timestep, sample, eta=0.0, return_dict=True):
    if timestep == self.timesteps[-1]:
      more = dict(eta=0.0)
    elif eta:
      more = dict(eta=eta, variance_noise=next(self.given))
    else:
      more = {}
    return super().step(
      model_output, timestep, sample, return_dict=return_dict, **more
    )


def latents_of(model, scheduler, rows, start, eta):
  """Theirs, of ten steps."""
  pipeline = diffusers.StableDiffusionPipeline(
    diffusers.AutoencoderKL(block_out_channels=(32,)), None, None, model,
    scheduler, None, None, requires_safety_checker=False,
  )  # fmt: skip
  pipeline.set_progress_bar_config(disable=True)
  text, null = texts(rows)
  return pipeline(
    prompt_embeds=text, negative_prompt_embeds=null, latents=start, eta=eta,
    num_inference_steps=10, guidance_scale=GUIDANCE, output_type='latent',
  ).images  # fmt: skip


def test_stable_diffusion_pipeline(tmp_path):
  """Ten guided steps without noise."""
  model = small()
  model.save_pretrained(tmp_path)
  net, params = unet.load(tmp_path)
  sampler = ode.sampler(
    net, 10, guidance_scale=GUIDANCE, grid=dict(name='ddim')
  )
  rows = rows_of()
  found = jax.jit(sampler)(params, rows)
  start = rng.normal(rng.stream_keys(rows.keys, 'init'), net.shape)
  scheduler = diffusers.DDIMScheduler(**SD15)
  want = latents_of(model, scheduler, rows, first(start), 0.0)
  assert error(found, last(want)) < 1e-4


def test_stable_diffusion_pipeline_with_noise(tmp_path):
  """Ten guided ancestral steps, the policy of DDPO."""
  model = small()
  model.save_pretrained(tmp_path)
  net, params = unet.load(tmp_path)
  policy = denoising.denoising(
    net, steps=10, transition=dict(name='ddim'), noise=1.0,
    guidance_scale=GUIDANCE, grid=dict(name='ddim'),
  )  # fmt: skip
  rows = rows_of()
  traj = jax.jit(policy.rollout)(params, rows, jnp.int32(0))
  start, noise = start_and_noise(policy, params, traj)
  assert len(noise) == 9 and traj.mask.all()
  scheduler = Ancestral(**SD15)
  scheduler.given = iter(noise)
  want = latents_of(model, scheduler, rows, start, 1.0)
  assert error(traj.sample, last(want)) < 1e-4


def test_consistency_pipeline(tmp_path, monkeypatch):
  """Four calls, with noise between them: `cps` at level 1."""
  model = small(time_cond_proj_dim=16)
  model.save_pretrained(tmp_path)
  scheduler = diffusers.LCMScheduler()
  net, params = unet.load(
    tmp_path, guidance=GUIDANCE, **unet_files.process(scheduler.config)
  )
  policy = denoising.denoising(
    net, steps=4, transition=dict(name='cps'), noise=1.0, grid=dict(name='lcm')
  )
  rows = rows_of()
  traj = jax.jit(policy.rollout)(params, rows, jnp.int32(0))
  start, noise = start_and_noise(policy, params, traj)
  assert len(noise) == 3
  given = iter(noise)
  monkeypatch.setattr(
    diffusers.schedulers.scheduling_lcm, 'randn_tensor',
    lambda *args, **kwargs: next(given),
  )  # fmt: skip
  pipeline = diffusers.LatentConsistencyModelPipeline(
    diffusers.AutoencoderKL(block_out_channels=(32,)), None, None, model,
    scheduler, None, None, requires_safety_checker=False,
  )  # fmt: skip
  pipeline.set_progress_bar_config(disable=True)
  want = pipeline(
    prompt_embeds=texts(rows)[0], latents=start, num_inference_steps=4,
    guidance_scale=GUIDANCE, output_type='latent',
  ).images  # fmt: skip
  assert error(traj.sample, last(want)) < 1e-4


def test_what_is_refused():
  said = dict(diffusers.DDIMScheduler(**SD15).config)
  assert unet_files.process(said)['train_steps'] == 1000
  for option in (
    dict(clip_sample=True),
    dict(thresholding=True),
    dict(rescale_betas_zero_snr=True),
    dict(trained_betas=[0.1]),
    dict(beta_schedule='sigmoid'),
    dict(prediction_type='sample'),
    dict(beta_end=None),
  ):
    with pytest.raises(
      ValueError, match='of this scheduler.*not computed|missing'
    ):
      unet_files.process(said | option)
  with pytest.raises(ValueError, match='betas=.cosine. is none of'):
    ddpm.flow_times('cosine')
