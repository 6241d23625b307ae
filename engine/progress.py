"""Progress on the terminal. Jobs get it as an argument, so that they need not know of one.

A job says `with progress('sampling', 64, 'images', done=3) as advance:` and then `advance(8)`, or
`advance(1, loss=0.25)` for a number to be shown beside the bar.
"""

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import tqdm

Advance = Callable[..., None]
"""advance(count=1, **shown): so many units are done; numbers to show beside the bar."""

Progress = Callable[..., AbstractContextManager[Advance]]
"""progress(description, total, unit, done=0): a bar from `done` to `total` units."""

# With the rate always per second: tqdm would turn it round below one.
_FORMAT = ('{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, '
           '{rate_noinv_fmt}{postfix}]')


@contextlib.contextmanager
def silent(description: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
  """Shows nothing; see Progress."""
  del description, total, unit, done
  yield lambda count=1, **shown: None


@contextlib.contextmanager
def bar(description: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
  """Shows a bar on stderr; see Progress."""
  # tqdm alone would show nothing on a terminal that does not know its size.
  columns, rows = shutil.get_terminal_size()
  with tqdm.tqdm(desc=description, total=total, unit=f' {unit}', initial=done, ncols=columns,
                 nrows=rows, bar_format=_FORMAT) as shown_bar:
    def advance(count=1, **shown):
      shown_bar.set_postfix(shown, refresh=False)
      shown_bar.update(count)
    yield advance


def choose(quiet: bool) -> Progress:
  """Returns `bar` where stderr is a terminal and nobody asked for quiet, else `silent`."""
  return silent if quiet or not sys.stderr.isatty() else bar
