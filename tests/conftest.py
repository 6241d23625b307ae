"""One compilation cache for the whole session, less optimization, and the 64-bit mode."""

import os

import jax
import pytest

# The older of XLA's two generators of code for fused operations takes less than half the time of
# the newer to compile a network. XLA reads this once, before the first program, and JAX 0.11 on
# knows no such choice; processes that are started from here inherit it.
if jax.__version_info__ < (0, 11):
  os.environ['XLA_FLAGS'] = ' '.join([
      *os.environ.get('XLA_FLAGS', '').split(), '--xla_cpu_use_fusion_emitters=false'])


@pytest.fixture(scope='session', autouse=True)
def compilation_cache(tmp_path_factory):
  """Serves equal programs from one place, whichever test or process compiles them first."""
  base = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:  # A worker's folder lies in the session's.
    base = base.parent
  folder = str(base / 'jax_cache')
  jax.config.update('jax_compilation_cache_dir', folder)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
  # Nearly all programs take far longer to compile than to run, and what is tested holds for any
  # order of sums: XLA's and LLVM's costly passes are left out, a sixth of the time.
  jax.config.update('jax_disable_most_optimizations', True)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JAX_COMPILATION_CACHE_DIR', folder)
    patch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
    patch.setenv('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')
    patch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
    yield


@pytest.fixture
def x64():
  """64 bit, and no silent promotion of rank or dtype."""
  with jax.enable_x64(True), jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
    yield
