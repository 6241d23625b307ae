"""All tests of the metrics run in 64 bit and under strict promotion, unless they say otherwise."""

import pytest


@pytest.fixture(autouse=True)
def strict_numerics(request):
  """Turns on the `x64` fixture; the mark `float32` keeps single precision."""
  if not request.node.get_closest_marker('float32'):
    request.getfixturevalue('x64')
