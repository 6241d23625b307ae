"""PyTorch is not needed, not even for conversion, and nothing is downloaded."""

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent

# Imports every module and runs main.py where torch cannot be imported and no host can be reached.
_PROGRAM = '''
import importlib, pathlib, runpy, sys

class NoTorch:
  @staticmethod
  def find_spec(name, path=None, target=None):
    if name.split('.')[0] == 'torch':
      raise ImportError(name)

def refuse(event, arguments):
  if event in ('socket.connect', 'socket.getaddrinfo'):
    raise OSError(f'{event} {arguments}')

sys.meta_path.insert(0, NoTorch)
sys.addaudithook(refuse)
root = pathlib.Path(sys.argv.pop(1))
sys.path.insert(0, str(root))
for package in 'samplers', 'models', 'convert', 'configs', 'engine', 'benchmarks':
  for path in sorted((root / package).rglob('*.py')):
    name = '.'.join(path.relative_to(root).with_suffix('').parts)
    importlib.import_module(name.removesuffix('.__init__'))
runpy.run_path(str(root / 'main.py'), run_name='__main__')
'''


def test_main_runs_without_torch_and_without_a_network(tmp_path):
  result = subprocess.run(
      [sys.executable, '-c', _PROGRAM, str(ROOT), '--config.model.name=digits_exact',
       '--config.seeds=0-1', '--config.seeds_from=torch_cpu', '--config.solver.name=euler',
       '--config.schedule.num_steps=2', '--config.batch_size=2'],
      cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
  assert (result.returncode, result.stderr) == (0, '')
  assert {path.name for path in (tmp_path / 'out').iterdir()} == {
      '000000.png', '000001.png', 'grid.png', 'manifest.json', 'run.json'}


def test_torch_is_imported_to_compare_with_only():
  packages = [path for path in ROOT.iterdir() if (path / '__init__.py').exists()]
  sources = [ROOT / 'main.py', *(path for package in packages for path in package.rglob('*.py')
                                 if path.parent != ROOT / 'tests' / 'convert')]
  found = {str(path.relative_to(ROOT)) for path in sources if 'torch' in set(_imported(path))}
  # What puts another library beside ours may take it along.
  assert len(sources) > 80 and found == {'benchmarks/latents.py'}


def _imported(path):
  """Names of all top-level packages that a file imports, also inside functions."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name.split('.')[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield (node.module or '').split('.')[0]
    elif isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'importorskip':
      yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))
