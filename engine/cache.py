"""JAX's persistent compilation cache: a program is compiled once per machine, not once per run."""

import os
import pathlib
import stat

import jax


def enable() -> str | None:
  """Turns the cache on: in the user's cache directory, unless JAX was given another.

  What lies in the cache is executed, so it has to belong to the user alone; otherwise the run goes
  on without. A directory named in JAX_COMPILATION_CACHE_DIR is used as it is.

  Returns:
    None, or the sentence that says why there is no cache.
  """
  if jax.config.jax_compilation_cache_dir:
    return None
  try:
    path = _private(_user_directory())
  except (OSError, RuntimeError) as error:  # pathlib's where there is no home directory.
    return f'compilation cache: not used, every run compiles anew; {error}'
  jax.config.update('jax_compilation_cache_dir', str(path))
  # Small programs too: there are few, and each would cost a warm start a fraction of a second.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
  return None


def disable() -> None:
  """Turns the cache off, also one that the environment names."""
  jax.config.update('jax_enable_compilation_cache', False)


def _user_directory() -> pathlib.Path:
  """$XDG_CACHE_HOME/fewstep, or ~/.cache/fewstep; the standard says to ignore a relative path."""
  given = pathlib.Path(os.environ.get('XDG_CACHE_HOME', ''))
  return (given if given.is_absolute() else pathlib.Path.home() / '.cache') / 'fewstep'


def _private(path: pathlib.Path) -> pathlib.Path:
  """Makes a directory for the user alone, or checks one that is there."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.mkdir(mode=0o700, exist_ok=True)
  if hasattr(os, 'getuid'):  # Windows gives a user's directories to the user alone by itself.
    status = path.stat()
    if status.st_uid != os.getuid():
      raise PermissionError(f'{path} must belong to this user, got user number {status.st_uid}; '
                            'delete it or set XDG_CACHE_HOME')
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
      raise PermissionError(f'{path} must be writable by its owner alone, got mode '
                            f'{stat.S_IMODE(status.st_mode):o}; chmod 700 it')
  return path
