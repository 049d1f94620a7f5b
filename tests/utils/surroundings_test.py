import jax
import pytest

from gen_rl.utils import surroundings


def test_the_environment_changes_no_numbers(capsys):
  before = {name: getattr(jax.config, name) for name in surroundings._FIXED}
  drawn = jax.random.key_data(jax.random.split(jax.random.key(3), 5))
  try:
    surroundings.fix_numbers()
    assert capsys.readouterr().err == ''
    jax.config.update('jax_threefry_partitionable', False)
    jax.config.update('jax_default_prng_impl', 'rbg')
    jax.config.update('jax_disable_jit', True)
    surroundings.fix_numbers()
    again = jax.random.key_data(jax.random.split(jax.random.key(3), 5))
    assert (again == drawn).all()
    said = capsys.readouterr().err
    assert said.count('\n') == 3 and 'JAX_DEFAULT_PRNG_IMPL=rbg' in said
  finally:
    for name, value in before.items():
      jax.config.update(name, value)


def test_no_device_is_a_sentence(monkeypatch):
  def devices():
    raise RuntimeError("Unable to initialize backend 'x'.\nMore.")

  monkeypatch.setattr(jax, 'devices', devices)
  monkeypatch.setenv('JAX_PLATFORMS', 'x')
  with pytest.raises(ValueError, match="JAX_PLATFORMS='x': Unable to .*'x'"):
    surroundings.check_devices()
