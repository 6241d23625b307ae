"""The cache of compiled programs belongs to the user alone, or is not used."""

import os
import stat

import jax
import pytest

from engine import cache


@pytest.fixture(autouse=True)
def own_settings(monkeypatch):
  """JAX without a cache directory, as main.py finds it, and as it was afterwards."""
  names = ('jax_compilation_cache_dir', 'jax_enable_compilation_cache',
           'jax_persistent_cache_min_compile_time_secs',
           'jax_persistent_cache_min_entry_size_bytes')
  before = {name: getattr(jax.config, name) for name in names}
  jax.config.update('jax_compilation_cache_dir', None)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_the_cache_is_made_private_in_the_cache_directory_of_the_user(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'a' / 'b'))
  before = os.umask(0)  # Whatever the user's habits.
  try:
    assert cache.enable() is None
  finally:
    os.umask(before)
  path = tmp_path / 'a' / 'b' / 'fewstep'
  assert jax.config.jax_compilation_cache_dir == str(path)
  assert stat.S_IMODE(path.stat().st_mode) == 0o700
  jax.config.update('jax_compilation_cache_dir', None)
  assert cache.enable() is None  # As it finds it the next time.


@pytest.mark.parametrize('given', ['', 'relative/path'])
def test_without_a_good_xdg_cache_home_it_is_below_home(tmp_path, monkeypatch, given):
  monkeypatch.setenv('XDG_CACHE_HOME', given)
  monkeypatch.setenv('HOME', str(tmp_path))
  assert cache.enable() is None
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / '.cache' / 'fewstep')


def test_a_directory_given_to_jax_is_used_as_it_is(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  jax.config.update('jax_compilation_cache_dir', '/elsewhere')
  assert cache.enable() is None
  assert jax.config.jax_compilation_cache_dir == '/elsewhere' and not list(tmp_path.iterdir())


@pytest.mark.parametrize('mode', [0o770, 0o707, 0o777])
def test_a_cache_that_others_can_write_to_is_not_used(tmp_path, monkeypatch, mode):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  (tmp_path / 'fewstep').mkdir()
  (tmp_path / 'fewstep').chmod(mode)
  note = cache.enable()
  assert note.startswith('compilation cache: not used, every run compiles anew; ')
  assert note.endswith(f'writable by its owner alone, got mode {mode:o}; chmod 700 it')
  assert jax.config.jax_compilation_cache_dir is None


def test_a_cache_of_another_user_is_not_used(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(os, 'getuid', lambda: 12345)
  assert 'must belong to this user, got user number' in cache.enable()
  assert jax.config.jax_compilation_cache_dir is None


def test_a_cache_that_cannot_be_made_is_not_used(tmp_path, monkeypatch):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  note = cache.enable()
  assert note.startswith('compilation cache: not used') and '\n' not in note
  assert jax.config.jax_compilation_cache_dir is None


def test_the_cache_can_be_switched_off():
  cache.disable()
  assert not jax.config.jax_enable_compilation_cache
