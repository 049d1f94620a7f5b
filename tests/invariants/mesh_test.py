"""One device with any mesh: samples, pictures, states and metrics of a step.

Prompts are where their rows are; those of fewer than the devices, on all.

The update is linear in the gradient (testing.LINEAR).
"""

import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen_rl import metrics, objectives, optim, rollout, sharding, testing
from gen_rl.data import pictures
from gen_rl.learners import noise_aware
from gen_rl.models import lm
from gen_rl.policies import ode
from gen_rl.policies import tokens as tokens_lib
from gen_rl.rewards import combine
from gen_rl.step.recipe import Pool
from gen_rl.train_state import Taught
from gen_rl.types import Reward, RewardOut
from gen_rl.utils import hlo, tree

ROOT = pathlib.Path(__file__).parents[2]
KEY = jax.random.key(testing.SEED)

_MESH = """
  import runpy, sys
  run = runpy.run_path('tests/invariants/mesh_test.py')
  run['write_runs'](*sys.argv[1:])
"""
MESHES = ('1,1,1', '8,1,1', '2,2,2')  # data, fsdp, tensor


def judge():
  """A reward whose parameters a mesh splits, of pictures of `testing.dit`."""
  drawn = np.random.default_rng(0).normal(size=(8 * 8 * 3, 8)) / 8
  params = dict(up=np.float32(drawn), down=np.ones(8, np.float32))

  def score(params, inputs, key):
    flat = inputs.image.reshape(len(inputs.image), -1)
    value = jnp.tanh(flat @ params['up']) @ params['down']
    return RewardOut(value, {}, jnp.isfinite(value))

  axes = (('up', ('embed', 'mlp')), ('down', ('mlp',)))
  return Reward('judge', params, score, differentiable=True, axes=axes)


def said_on(mesh):
  """Rows of tokens in groups, and gradients of their log-probs, by name.

  The head is the largest part by far; its gradient is summed over devices once,
  though there are logits of one decision at a time.
  """
  net = lm.lm(vocab=512, length=2, width=16, layers=1, heads=2, tied=False)
  policy = tokens_lib.tokens(net, length=4, end=5, head_chunk=1)
  layout = sharding.Layout(mesh, net.axes)
  batch = testing.batch(range(8))
  batch['tokens'] = np.arange(16, dtype=np.int32).reshape(8, 2) + 1

  def run(params):
    rows = rollout.make_rows(batch, 4, KEY, jnp.int32(0))
    traj = policy.rollout(params, layout.rows(rows), 0)
    dist = lambda params: policy.ops['dist'](params, traj)
    loss = lambda params: dist(params).log_prob(traj.actions).sum()
    return dict(sample=traj.sample, gradient=jax.grad(loss)(params))

  params = jax.jit(net.init)(KEY)
  with layout.scope():
    program = jax.jit(run).lower(params).compile()
  sent = hlo.traffic(program.as_text()).network.get('all-reduce', 0.0)
  assert sent < 2.5 * sum(x.nbytes for x in jax.tree.leaves(params))
  return tree.named(program(params))


def pictured():
  """Eight prompts, each with a picture of the size of `testing.perceptron`."""
  drawn = np.random.default_rng(1).random((8, 4, 4, 3), np.float32)
  return testing.batch(range(8)) | dict(media=drawn)


def write_runs(folder, *meshes):
  """Two steps on each mesh, and what they sampled, as npz."""
  for sizes in meshes:
    data, fsdp, tensor = map(int, sizes.split(','))
    devices = jax.devices()[: data * fsdp * tensor]
    mesh = sharding.make_mesh(data, fsdp, tensor, devices)
    out = {}
    aware = Taught(noise_aware.of_reward(judge()), testing.LINEAR)
    for name, net, batch, cut in (
      (
        'dit',
        testing.dit(),
        testing.dit_batch(),
        dict(
          monitors=dict(judge=(judge(), 1.0)),
          learners=dict(aware=aware),
        ),
      ),
      (
        'cut',
        None,
        testing.batch(),
        dict(
          updates=2,
          microbatches=2,
          rollout_chunks=2,
          pool=Pool(16, testing.make_policy(steps=2)),
        ),
      ),
      ('all', None, testing.batch(), dict(terms=testing.terms())),
      (
        'rows',
        None,
        testing.batch(),
        dict(
          testing.of_unlike_lengths('seq_mean_token_mean'),
          microbatches=2,
          tx=optax.chain(testing.LINEAR, optim.langevin(0.1, lambda n: 0.1)),
        ),
      ),
      (
        'pictures',
        None,
        pictured(),
        dict(
          rollout=rollout.data_rollout(pictures.given()),
          terms=dict(fm=(objectives.flow_matching(), 1.0)),
          rollout_chunks=2,
          microbatches=2,
        ),
      ),
    ):
      if name != 'dit' and tensor > 1:
        continue  # takes a minute
      window = 0 if name == 'all' else 2  # gradients of samples: the last steps
      # Noise that rows share: cut, and on other devices
      tree_of = dict(name='fixed_branches', after=(0, 1), ways=(2, 4))
      branch = dict(cut=tree_of, rows=dict(name='random_branch'))
      branch = branch.get(name)
      policy = testing.make_policy(net, window=window, branch=branch)
      away = ('ema', 'optimizer') if tensor > 1 else ()
      judges = combine.axes(cut.get('monitors', {}))
      layout = sharding.Layout(
        mesh, policy.axes, offload=away, judges=judges,
        learners=dict(aware=aware.learner.axes),
      )  # fmt: skip
      step, state = testing.make_step(
        policy,
        layout=layout,
        group_size=8,
        **dict(tx=testing.LINEAR) | cut,
      )
      state, batch = layout.put(state), layout.place(batch)
      if name == 'pictures' and mesh.size > 1:  # each where its rows are
        shapes = {x.data.shape for x in batch['media'].addressable_shards}
        assert shapes == {(8 // data, 4, 4, 3)}
      with layout.scope():
        traj, inputs, _ = step.sample(state, batch, KEY)
        logs = []
        for _ in range(2):
          state, log = step.train_step(state, batch, KEY)
          logs.append(metrics.comparable(log))
      assert step.train_step._cache_size() == 1
      assert testing.memory_kinds(state.opt_state) == {
        'pinned_host' if away else 'device'
      }
      parts = jax.tree.leaves(state.params)
      assert all(len(x.sharding.device_set) == mesh.size for x in parts)
      split = [x for x in parts if not x.is_fully_replicated]
      assert bool(split) == (fsdp * tensor > 1)
      places = dict(up=(192 // fsdp, 8 // tensor), down=(8 // tensor,))
      judged = state.frozen['rewards'].get('judge', {})
      learned = state.aux.get('aware', dict(params={}))['params']
      for leaf, x in [*judged.items(), *learned.items()]:
        assert x.sharding.shard_shape(x.shape) == places[leaf]
      found = dict(
        sample=traj.sample, media=inputs.media, state=state, log=logs
      )
      out |= {f'{name}/{k}': x for k, x in tree.named(found).items()}
    if tensor == 1:  # steps that take velocities: all devices decide alike
      sampler = ode.counted(testing.perceptron(), 10, cache_threshold=0.3)
      rows = rollout.make_rows(testing.batch(), 8, KEY, jnp.int32(0))
      found = jax.jit(sampler)(
        testing.perceptron().init(KEY), layout.rows(rows)
      )
      out |= {'cached/sample': found[0], 'cached/reused': found[1]}
      assert 0 < found[1][0] < 0.7
    if tensor == 1:
      out |= {f'said/{k}': x for k, x in said_on(mesh).items()}
    np.savez(
      f'{folder}/{sizes}.npz', **{k: np.asarray(x) for k, x in out.items()}
    )


def test_one_device_equals_any_mesh(tmp_path):
  flags = os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=8'
  subprocess.run(
    [sys.executable, '-c', textwrap.dedent(_MESH), tmp_path, *MESHES],
    check=True,
    cwd=ROOT,
    env=os.environ | dict(XLA_FLAGS=flags, JAX_PLATFORMS='cpu'),
  )
  one, *others = (dict(np.load(tmp_path / f'{m}.npz')) for m in MESHES)
  for mesh, other in zip(MESHES[1:], others, strict=True):
    assert set(other) <= set(one) and len(other) > 20
    for name, value in other.items():
      tight = name.endswith(('sample', 'media'))
      np.testing.assert_allclose(
        value, one[name], err_msg=f'{mesh} {name}',
        **(dict(atol=1e-6) if tight else dict(rtol=1e-4, atol=1e-5)),
      )  # fmt: skip
