"""One compilation cache for the whole session, and the 64-bit mode of numerical tests."""

import jax
import pytest


@pytest.fixture(scope='session', autouse=True)
def compilation_cache(tmp_path_factory):
  """Serves equal programs that differ in Python identity alone from one place."""
  jax.config.update('jax_compilation_cache_dir', str(tmp_path_factory.mktemp('jax_cache')))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


@pytest.fixture
def x64():
  """64 bit, and no silent promotion of rank or dtype."""
  with jax.enable_x64(True), jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
    yield
