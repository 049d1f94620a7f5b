"""Configs of released models against the settings their papers' code has.

The numbers were read off that code and written down by hand: Flow-GRPO's
(config/base.py, grpo.py, grpo_guard.py, scripts/train_sd3.py, train_sd3_fast.py
of August 2025, train_flux.py, train_flux_fast.py, flow_grpo/ema.py),
ddpo-pytorch's (config/base.py, dgx.py), RLCM's, Diffusion-DPO's
(launchers/sd15.sh, train.py), Diffusion-KTO's (exps/example.sh,
train_kto_sd_v1.5.py), AlignProp's (config/alignprop_config.py and the scripts
beside it) and FlowBP's (configs/final/sd35). What is about the size of the
model, of the cluster or of its memory is left out.
"""

import inspect
import types

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import (
  diffusion_dpo,
  flux_flow_grpo,
  sd3_flow_grpo,
  sd3_refl,
  sd15_alignprop,
  sd15_ddpo,
  sd15_tpo,
)
from gen_rl import advantages, build, objectives, optim, policies, testing
from gen_rl.diffusion import transitions
from gen_rl.distributions import Gaussian
from gen_rl.policies import ode

ADAM = {
  'optimizer.name': 'adamw', 'optimizer.b1': 0.9, 'optimizer.b2': 0.999,
  'optimizer.weight_decay': 1e-4, 'optimizer.eps': 1e-8,
  'optimizer.grad_clip': 1.0, 'optimizer.warmup': 0,
  'optimizer.decay': 'constant',
}  # fmt: skip
# What all of Flow-GRPO's configs share.
FLOW = ADAM | {
  'optimizer.lr': 3e-4, 'updates': 2, 'epochs': 1,
  'ema': 0.9, 'ema_every': 8, 'ema_warmup': True,
  'lora.init': 'gaussian', 'data.prompts_per_step': 48, 'data.group_size': 24,
  'data.embed.encoder.t5_length': 128, 'advantage.name': 'grpo',
  'advantage.clip': 5.0, 'advantage.eps': 1e-4, 'advantage.ddof': 0,
  'objective.pg.name': 'clipped_pg', 'objective.pg.ratio': 'plain',
  'objective.pg.clip_high': None, 'objective.pg.dual_clip': None,
  'policy.event': 'mean', 'policy.shared_noise': False,
}  # fmt: skip
SD3 = FLOW | {
  'policy.steps': 10, 'policy.guidance_scale': 4.5, 'policy.noise': 0.7,
  'policy.guidance_gradient': 'both',
  'policy.transition.name': 'flow_sde', 'policy.unit_log_prob': False,
  'policy.window': 0, 'policy.window_high': 0,
  'lora.rank': 32, 'lora.alpha': 64.0,
  'advantage.std': 'global', 'advantage.drop_zero': True,
  'objective.pg.clip': 1e-4, 'objective.kl.scale': 'dt',
  'objective.kl.weight': 0.01, 'objective.kl.kind': 'reverse',
  'eval.steps': 40, 'eval.every': 60, 'checkpoint.every': 60,
}  # fmt: skip
FAST = SD3 | {
  'policy.noise': 0.8, 'policy.window_start.name': 'random_window',
  'policy.window_low': 0, 'objective.pg.clip': 1e-5, 'objective.kl.weight': 0.0,
}  # fmt: skip
NOCFG = FAST | {
  'policy.window': 3, 'policy.window_high': 5, 'policy.guidance_scale': 1.0,
  'policy.transition.name': 'cps', 'policy.unit_log_prob': True,
  'objective.kl.scale': 'exact',
}  # fmt: skip
TP = {
  k: v
  for k, v in SD3.items()
  if k not in ('advantage.std', 'advantage.ddof', 'advantage.drop_zero')
} | {
  'policy.transition.name': 'cps', 'policy.noise': 0.7, 'policy.window': 0,
  'policy.unit_log_prob': True, 'objective.pg.clip': 1e-5,
  'objective.kl.weight': 0.0, 'advantage.name': 'turning_points',
  'advantage.mode': 'bonus', 'advantage.balanced': False,
  'advantage.consistent': False,
}  # fmt: skip
GUARD = SD3 | {
  'advantage.std': 'group', 'objective.pg.ratio': 'guard',
  'objective.pg.clip': 2e-6, 'objective.kl.weight': 0.0, 'optimizer.lr': 1e-4,
  'eval.every': 30, 'checkpoint.every': 30,
}  # fmt: skip
FLUX = FLOW | {
  'policy.steps': 6, 'policy.noise': 0.8, 'policy.transition.name': 'cps',
  'policy.unit_log_prob': True, 'policy.window': 3, 'policy.window_low': 0,
  'policy.window_high': 3, 'policy.guidance_scale': 1.0,
  'model.net.guidance': 3.5, 'lora.rank': 64, 'lora.alpha': 128.0,
  'advantage.std': 'group', 'advantage.drop_zero': False,
  'objective.pg.clip': 1e-5, 'objective.kl.weight': 0.0,
  'eval.steps': 28, 'eval.every': 30, 'checkpoint.every': 30,
}  # fmt: skip
DDPO = ADAM | {
  'optimizer.lr': 3e-4, 'steps': 100, 'updates': 4, 'epochs': 1, 'ema': 0.0,
  'lora.init': 'gaussian', 'lora.rank': 4, 'lora.alpha': 4.0,
  'policy.steps': 50, 'policy.guidance_scale': 5.0, 'policy.noise': 1.0,
  'policy.transition.name': 'ddim', 'policy.event': 'mean',
  'policy.unit_log_prob': False, 'policy.window': 0,
  'advantage.name': 'history', 'advantage.buffer': 16,
  'advantage.min_count': 16, 'advantage.clip': 5.0, 'advantage.eps': 1e-6,
  'advantage.drop_zero': False, 'objective.pg.name': 'clipped_pg',
  'objective.pg.clip': 1e-4, 'objective.pg.ratio': 'plain',
}  # fmt: skip
DPO = ADAM | {
  'optimizer.lr': 2.048e-5, 'optimizer.warmup': 500,
  'optimizer.weight_decay': 1e-2, 'steps': 2000, 'updates': 1,
  'data.prompts_per_step': 2048, 'data.group_size': 2,
  'objective.preference.name': 'dpo', 'objective.preference.beta': 5000.0,
  'objective.preference.draws': 1, 'objective.preference.error': 'noise',
  'lora.pattern': '', 'ema': 0.0, 'policy.training_times.name': 'levels',
  'checkpoint.every': 500,
}  # fmt: skip
ALIGNPROP = ADAM | {
  'optimizer.lr': 1e-3, 'updates': 1, 'epochs': 1, 'steps': 25, 'ema': 0.0,
  'data.prompts_per_step': 128, 'data.group_size': 1,
  'lora.init': 'gaussian', 'lora.rank': 4, 'lora.alpha': 4.0,
  'policy.steps': 50, 'policy.guidance_scale': 5.0, 'policy.noise': 1.0,
  'policy.guidance_gradient': 'both', 'policy.transition.name': 'ddim',
  'objective.reward.cut': 'gaussian', 'objective.reward.std': 5.0,
  'objective.reward.mean': 42 - 0.5, 'objective.reward.weight': 0.01,
  'objective.reward.loss': 'negative', 'checkpoint.every': 5,
}  # fmt: skip
FLOWBP = ADAM | {
  'optimizer.lr': 1e-5, 'steps': 300, 'ema': 0.995, 'ema_every': 1,
  'data.prompts_per_step': 64, 'data.group_size': 1, 'lora.pattern': '',
  'policy.steps': 25, 'policy.shift': 3.0, 'policy.grid.name': '',
  'policy.guidance_scale': 3.5, 'policy.guidance_gradient': 'conditional',
  'policy.deterministic': True, 'objective.reward.loss': 'relu_margin',
  'objective.reward.target': 0.55, 'objective.reward.weight': 1.0,
  'eval.every': 50, 'eval.steps': 40, 'checkpoint.every': 100,
}  # fmt: skip
TABLE = [
  (sd3_flow_grpo, 'pickscore', SD3),
  (sd3_flow_grpo, 'ocr', SD3 | {'objective.kl.weight': 0.04}),
  (sd3_flow_grpo, 'geneval', SD3 | {'objective.kl.weight': 0.04}),
  (sd3_flow_grpo, 'fast', FAST | {'policy.window': 2, 'policy.window_high': 7}),
  (
    sd3_flow_grpo, 'fast_nocfg',
    NOCFG | {'data.prompts_per_step': 64, 'data.group_size': 18},
  ),
  (sd3_flow_grpo, 'geneval,fast_nocfg', NOCFG),
  (sd3_flow_grpo, 'guard', GUARD | {'objective.pg.clip': 4e-6}),
  (sd3_flow_grpo, 'ocr,guard', GUARD),
  (sd3_flow_grpo, 'tp', TP),
  (sd3_flow_grpo, 'geneval,guard', GUARD),
  (flux_flow_grpo, '', FLUX),
  (
    flux_flow_grpo, 'all',
    FLUX
    | {
      'policy.noise': 0.9, 'policy.transition.name': 'flow_sde',
      'policy.unit_log_prob': False, 'policy.window': 0,
      'policy.window_high': 0, 'advantage.std': 'global',
      'objective.pg.clip': 1e-4,
    },
  ),
  (sd15_ddpo, '', DDPO),
  (
    sd15_ddpo, 'lcm',
    DDPO
    | {
      'optimizer.lr': 1e-4, 'optimizer.weight_decay': 0.0,
      'optimizer.grad_clip': 5.0, 'advantage.clip': 10.0, 'updates': 1,
      'steps': 1000, 'lora.rank': 16, 'lora.alpha': 32.0,
      'policy.guidance_scale': 1.0, 'policy.steps': 8,
      'policy.transition.name': 'cps', 'model.net.guidance': 8.0,
    },
  ),
  (diffusion_dpo, 'sd15', DPO),
  (sd15_tpo, 'files', DPO | {'objective.preference.loser_cap': 0.004}),
  (sd15_alignprop, '', ALIGNPROP),
  (
    sd15_alignprop, 'aesthetic',
    ALIGNPROP
    | {
      'steps': 20, 'objective.reward.loss': 'l1_target',
      'objective.reward.target': 10.0,
    },
  ),
  (
    sd15_alignprop, 'k1',
    ALIGNPROP
    | {'objective.reward.cut': 'fixed', 'objective.reward.last': 50 - 49},
  ),
  (
    sd3_refl, '',
    FLOWBP | {'objective.reward.last': 1, 'objective.reward.early': 11},
  ),
  (
    sd3_refl, 'lv',
    FLOWBP | {'objective.reward.last': 1, 'objective.reward.draws': 2},
  ),
  (
    sd3_refl, 'drtune',
    FLOWBP
    | {
      'objective.reward.cut': 'spaced', 'objective.reward.last': 3,
      'objective.reward.early': 10, 'objective.reward.detach_inputs': True,
    },
  ),
  (
    sd15_tpo, 'tkto',
    DPO
    | {
      'optimizer.lr': 1e-7, 'optimizer.warmup': 200, 'steps': 20000,
      'data.prompts_per_step': 4, 'objective.preference.name': 'kto',
      'objective.preference.beta': 1000.0,
      'objective.preference.preferred_weight': 1.0,
      'objective.preference.other_weight': 1.0,
    },
  ),
]  # fmt: skip
# Fields of which the published value is not ours, each a line of the docstring.
LISTED = {
  sd3_flow_grpo: ('steps', 'eval', 'dtype', 'kl', 'ema', 'fast', 'rewards'),
  flux_flow_grpo: ('schnell',),
  sd15_ddpo: ('model', 'prompts', 'steps', 'dtype', 'eval'),
  sd15_alignprop: ('prompts', 'cut', 'steps', 'dtype', 'clip', 'eval'),
  sd3_refl: ('prompts', 'calls', 'dtype', 'clip', 'eval'),
  diffusion_dpo: ('dtype', 'latents', 'prompts', 'pairs', 'eval'),
  sd15_tpo: (
    'bound',
    'rows',
    'dtype',
    'latents',
    'prompts',
    'pairs',
    'point',
    'eval',
  ),
}
MODULES = dict(
  optimizer=optim, advantage=advantages, objective=objectives, policy=policies
)


def _value(config: ml_collections.ConfigDict, path: str):
  """A field, or the default of the function that is given none."""
  *outer, field = path.split('.')
  spec = config
  for part in outer:
    spec = spec[part]
  if field in spec:
    return spec[field]
  function = getattr(MODULES[outer[0]], spec.name)
  return inspect.signature(function).parameters[field].default


@pytest.mark.parametrize('module, arg, table', TABLE)
def test_settings_are_the_published_ones(module, arg, table):
  config = module.get_config(arg)
  ours = {path: _value(config, path) for path in table}
  assert ours == table
  if 'policy.window_start.name' not in table:
    assert config.policy.window_start.name == 'fixed_window'
  kept = {k for k, v in config.objective.items() if v.weight}
  assert ('kl' in kept) == bool(table.get('objective.kl.weight'))
  assert kept <= {'pg', 'kl'} or kept in ({'preference'}, {'reward'})


@pytest.mark.parametrize('module', LISTED)
def test_differences_are_listed(module):
  lines = [line.split(maxsplit=1) for line in module.__doc__.splitlines()]
  first = [words[0] for words in lines if words]
  assert set(LISTED[module]) <= set(first)


def _kl_of_steps(config, transition, noise):
  """The config's KL term where all velocities are 0.1 off, per step [T - 1]."""
  times, _ = ode.grid_of(config.policy.grid, 10, config.policy.shift)
  t, t_next = times[None, :-2], times[None, 1:-1]
  x = jnp.full((1, 9, 4), 0.3)
  level = jnp.full((1, 9), noise)
  v = dict(params=jnp.full(x.shape, 0.8), ref=jnp.full(x.shape, 0.7))
  dists = {
    k: Gaussian(*transition(x, v, t, t_next, level), event='mean')
    for k, v in v.items()
  }
  replay = testing.answers(dist=dists.__getitem__)
  traj = types.SimpleNamespace(
    times=jnp.stack([t, t_next], -1), mask=jnp.ones((1, 9))
  )
  kl = build.build_all(objectives, {'kl': config.objective.kl})['kl']
  term, _ = kl(replay, types.SimpleNamespace(traj=traj), None)
  return np.asarray(times, np.float64), np.asarray(term.value[0])


def test_the_kl_term_of_flow_grpo_by_hand():
  """train_sd3.py: mean(d^2) / (2 g^2), g^2 = 0.49 t / (1 - t), no -dt.

  d = dt (1 + g^2 (1 - t) / (2 t)) 0.1 = dt (1 + 0.49 / 2) 0.1 for t < 1, and
  dt 0.1 at t = 1, where g^2 is 0.49 / (1 - t') for the next time t'.
  """
  config = sd3_flow_grpo.get_config()
  times, got = _kl_of_steps(config, transitions.flow_sde(), 0.7)
  t, dt = times[:-2], -np.diff(times)[:-1]
  g2 = 0.49 / (1 - np.append(times[1], t[1:])) * np.append(1, t[1:])
  d = 0.1 * dt * np.append(1, np.full(8, 1.245))
  np.testing.assert_allclose(got, d**2 / (2 * g2), rtol=2e-5)
  # The first: t' = 0.96013, so d = 0.003987 and g^2 = 12.29.
  np.testing.assert_allclose(got[0], 0.003987**2 / (2 * 12.29), rtol=1e-3)


def test_the_kl_term_of_flow_cps_by_hand():
  """Its std_dev_t is the deviation of the step itself: t' sin(0.4 pi)."""
  config = sd3_flow_grpo.get_config('cps')
  times, got = _kl_of_steps(config, transitions.cps(), 0.8)
  t, t_next = times[:-2], times[1:-1]
  # x0 moves by -t 0.1, x1 by (1 - t) 0.1; x1 keeps t' cos(0.4 pi) of itself
  d = 0.1 * (t_next * np.cos(0.4 * np.pi) * (1 - t) - (1 - t_next) * t)
  want = d**2 / (2 * (t_next * np.sin(0.4 * np.pi)) ** 2)
  np.testing.assert_allclose(got, want, rtol=2e-5)
