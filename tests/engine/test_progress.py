"""Progress: a bar on a terminal, silence elsewhere."""

import io
import sys

import pytest

from engine import progress


class Terminal(io.StringIO):
  """A stream that says it is a terminal."""

  def isatty(self):
    return True


def test_a_bar_counts_units_per_second_and_shows_numbers(monkeypatch):
  monkeypatch.setattr(sys, 'stderr', Terminal())
  with progress.choose(quiet=False)('sampling', 10, 'images', done=2) as advance:
    advance(4)
    advance(4, loss=0.25)
  last = sys.stderr.getvalue().strip('\r\n').split('\r')[-1]
  assert last.startswith('sampling: 100%') and ' 10/10 ' in last
  assert ' images/s, loss=0.25]' in last


@pytest.mark.parametrize('stream, quiet', [(io.StringIO, False), (Terminal, True)])
def test_nothing_is_shown_where_there_is_no_terminal_or_with_quiet(monkeypatch, stream, quiet):
  monkeypatch.setattr(sys, 'stderr', stream())
  with progress.choose(quiet)('sampling', 10, 'images') as advance:
    advance()
    advance(3, loss=1.0)
  assert sys.stderr.getvalue() == ''
