"""What lets a killed training go on: checkpoints of its state, and metrics that fit them."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from engine import files


@contextlib.contextmanager
def opened(folder: pathlib.Path) -> Iterator[ocp.CheckpointManager]:
  """Yields the manager of a folder's checkpoints, of which it keeps the last two."""
  options = ocp.CheckpointManagerOptions(
      max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True)
  with ocp.CheckpointManager((folder / 'checkpoints').absolute(), options=options) as manager:
    yield manager


def restore(manager: ocp.CheckpointManager, first: Callable[[jax.Array], Any],
            key: jax.Array) -> Any:
  """Returns the state of the last checkpoint, or the first one.

  Args:
    manager: of the checkpoints.
    first: first(key) -> the state before the first step, pure.
    key: of the run.

  Returns:
    A pytree of arrays.
  """
  step = manager.latest_step()
  if step is None:
    return first(key)
  return manager.restore(step, args=ocp.args.StandardRestore(jax.eval_shape(first, key)))


def save(who: str, manager: ocp.CheckpointManager, step: int, state: Any) -> None:
  """Writes a checkpoint, whole or not at all.

  Args:
    who: the job, for errors.
    manager: of the checkpoints.
    step: its number.
    state: pytree of arrays.

  Raises:
    OSError: if it cannot be written.
  """
  try:
    manager.save(step, args=ocp.args.StandardSave(state))
  except (OSError, ValueError) as error:  # Storage errors come as ValueError from below Orbax.
    raise OSError(f'{who}: checkpoint must be writable, got {str(error)[:200]}; make room, and the '
                  'same command goes on from the last one') from error


def kept_lines(path: pathlib.Path, step: int) -> list[dict[str, Any]]:
  """Returns the lines of metrics up to a step; those that a killed run wrote after it go.

  Args:
    path: the file of JSON lines, there or not; it is made or cut.
    step: of the checkpoint that the run goes on from; a line tells its own as 'step'.

  Returns:
    The lines.
  """
  kept = []
  for text in path.read_text().splitlines() if path.exists() else []:
    with contextlib.suppress(json.JSONDecodeError):  # The last one may be cut.
      line = json.loads(text)
      kept += [line] if line['step'] <= step else []
  with files.replacing(path) as file:
    file.write(''.join(f'{json.dumps(line)}\n' for line in kept).encode())
  return kept


def add_line(path: pathlib.Path, lines: list[dict[str, Any]], line: dict[str, Any]) -> None:
  """Appends a line of metrics to the list and to the file."""
  lines.append(line)
  with open(path, 'a') as file:
    file.write(f'{json.dumps(line)}\n')
