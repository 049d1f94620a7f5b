"""Which changes of a config a checkpoint goes on with."""

import pytest

from configs import flow_grpo, sd3_flow_grpo, toy
from gen_rl import build, resume, schema
from gen_rl.fields import Kind


def _changes(config, **changed):
  saved, ours = config.to_dict(), config.copy_and_resolve_references()
  with ours.unlocked():
    ours.update_from_flattened_dict(changed)
  return resume.changes(saved, ours.to_dict())


@pytest.mark.parametrize(
  'field, value',
  [
    ('microbatches', 4),
    ('rollout_chunks', 2),
    ('offload', ('ema',)),
    ('model.remat', 'full'),
    ('host_rewards.timeout', 1.0),
    ('data.embed.keep', 3),
    ('stop_after_skipped', 3),
    ('export', 'x'),
    ('monitors.s', dict(name='saturation')),
    ('eval.gold.oracle.name', 'shapes_geneval'),
    ('mesh.fsdp', 2),
    ('steps', 7),
    ('checkpoint.keep', 1),
  ],
)
def test_what_is_no_mathematics_may_change(field, value):
  assert not _changes(flow_grpo.get_config('tiny'), **{field: value})


def test_what_a_learner_writes_may_change():
  config = toy.get_config('ppo,tiny')
  assert not _changes(config, **{'learners.value.export': 'x'})
  assert _changes(config, **{'learners.value.every': 2})


def test_a_network_inside_another_is_recomputed_at_will():
  config = sd3_flow_grpo.get_config('tiny')
  fields = {'model.net.remat': 'full', 'model.net.attention': 'cudnn'}
  assert not _changes(config, **fields, **{'model.decode_rows': 1})
  assert _changes(config, **{'model.net.heads': 1})


@pytest.mark.parametrize(
  'field, value',
  [
    ('seed', 5),
    ('ema', 0.5),
    ('policy.noise', 0.1),
    ('objective.pg.clip', 0.3),
    ('objective.pg.dual_clip', 3.0),
    ('rewards.more', dict(name='saturation')),
    ('data.group_size', 4),
    ('frozen_dtype', 'bfloat16'),
    ('model.layers', 7),
    ('host_rewards.pixels', 'uint8'),
    ('nobody_knows_this', 1),
  ],
)
def test_mathematics_may_not(field, value):
  (line,) = _changes(flow_grpo.get_config('tiny'), **{field: value})
  assert line.startswith(field)


def test_what_an_older_release_did_not_know_is_at_its_default():
  config = flow_grpo.get_config('tiny')
  saved = config.to_dict()
  del saved['released'], saved['ema_warmup'], saved['lora']['init']
  del saved['policy']['grid'], saved['objective']['kl']['name']
  saved['objective']['kl']['name'] = 'kl'
  ours = config.to_dict()
  ours['objective']['kl']['path'] = False  # what its signature says
  assert resume.changes(saved, ours) == []
  assert resume.changes(ours, saved) == []
  ours['ema_warmup'] = True
  ours['objective']['kl']['path'] = True
  assert [line.split(':')[0] for line in resume.changes(saved, ours)] == [
    'ema_warmup',
    'objective.kl.path',
  ]


def test_fields_that_were_taken_out(monkeypatch):
  ours = flow_grpo.get_config('tiny').to_dict()
  saved = {**ours, 'gone': 3}
  assert resume.changes(saved, ours) == ['gone: 3 -> (absent)']
  monkeypatch.setitem(schema.base(), 'REMOVED', dict(gone=3))
  assert resume.changes(saved, ours) == []
  assert resume.changes({**ours, 'gone': 4}, ours) == ['gone: 4 -> (absent)']


def test_every_field_of_base_has_a_kind():
  config = flow_grpo.get_config('')
  kinds = {p: resume.kind_of(p, config) for p in build.flatten(config)}
  assert set(kinds.values()) == set(Kind)
  assert kinds['mesh.data'] == kinds['microbatches'] == Kind.GEOMETRY
  assert kinds['eval.samples'] == kinds['name'] == Kind.BOOKKEEPING
  assert kinds['optimizer.lr'] == kinds['objective.kl.ref'] == Kind.MATHEMATICS
