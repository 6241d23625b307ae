"""Rules of the house: which package may import which, style, and the size of files."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# What a package may import beside the standard library; imports point one way.
ALLOWED = {
    'samplers': {'samplers', 'jax', 'numpy'},
    'models': {'models', 'samplers', 'jax', 'numpy', 'flax', 'orbax'},
    'convert': {'convert', 'models', 'samplers', 'jax', 'numpy', 'ml_dtypes', 'flax', 'yaml'},
    'evaluation': {'evaluation', 'models', 'samplers', 'jax', 'numpy', 'flax', 'PIL'},
    'configs': {'configs', 'samplers', 'models', 'ml_collections'},
    'engine': {'engine', 'configs', 'convert', 'evaluation', 'models', 'samplers', 'jax', 'numpy',
               'flax', 'optax', 'orbax', 'ml_collections', 'matplotlib', 'tqdm', 'PIL'},
    'main.py': {'engine', 'absl', 'ml_collections'},
    'benchmarks': {'benchmarks', 'configs', 'convert', 'engine', 'evaluation', 'models', 'samplers',
                   'jax', 'numpy', 'matplotlib', 'sklearn', 'ml_collections', 'diffusers', 'torch'},
}


def sources(package):
  path = ROOT / package
  return [path] if path.is_file() else sorted(path.rglob('*.py'))


def imported(path):
  """Names of all top-level packages that a file imports, also inside functions."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name.split('.')[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      yield node.module.split('.')[0]


def test_every_source_is_under_a_rule():
  # Hidden folders and virtual environments under any name are not sources.
  tops = {path.name for path in ROOT.iterdir()
          if not path.name.startswith('.') and not (path / 'pyvenv.cfg').exists()
          and (path.suffix == '.py' or any(path.rglob('*.py')))}
  assert tops == {*ALLOWED, 'tests'}


@pytest.mark.parametrize('package', ALLOWED)
def test_imports_point_one_way(package):
  found = {(name, path.name) for path in sources(package) for name in imported(path)
           if name not in sys.stdlib_module_names}
  assert found and {name for name, _ in found} <= ALLOWED[package], sorted(found)


def test_nothing_imports_jobs_but_the_edge():
  for package in ('samplers', 'models', 'convert', 'evaluation', 'configs'):
    assert 'engine' not in {name for path in sources(package) for name in imported(path)}


def test_files_are_short():
  lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines())
             for package in (*ALLOWED, 'tests') for path in sources(package)}
  assert {name: length for name, length in lengths.items() if length > 450} == {}
  assert lengths['main.py'] < 80


def test_ruff_is_clean():
  result = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--no-cache', '.'], cwd=ROOT,
                          capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stdout + result.stderr
