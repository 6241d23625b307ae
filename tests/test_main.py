"""The command line, end to end."""

import json
import os
import pathlib
import pty
import re
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import samplers
from configs import default

ROOT = pathlib.Path(__file__).parent.parent
SMALL = ('--config.model.name=digits_exact', '--config.seeds=0-4', '--config.solver.name=euler',
         '--config.schedule.num_steps=2', '--config.batch_size=2')


def run_main(folder, *flags, **environment):
  """Runs main.py in an empty folder, as a user would."""
  return subprocess.run([sys.executable, ROOT / 'main.py', *flags], cwd=folder, check=False,
                        capture_output=True, text=True, timeout=300,
                        env={**os.environ, **environment})


@pytest.fixture(scope='module')
def complete(tmp_path_factory):
  """A folder in whose out/ a small run has ended; its program is compiled from then on."""
  folder = tmp_path_factory.mktemp('complete')
  assert run_main(folder, *SMALL).stdout.startswith('5 images in out: euler')
  return folder


def test_overrides_reach_the_files(tmp_path):
  result = run_main(
      tmp_path, '--config.model.name=digits_exact', '--config.seeds=5,8-9', '--config.labels=4',
      '--config.batch_size=2', '--config.solver.name=ddim', '--config.solver.eta=0.5',
      '--config.schedule.name=karras', '--config.schedule.num_steps=6', '--config.schedule.rho=5',
      '--config.limit=clip', '--config.output.subfolders', '--workdir=a/b')
  assert result.returncode == 0, result.stderr
  assert result.stderr == ''
  line, = result.stdout.splitlines()
  assert line.startswith('3 images in a/b: ddim on karras, NFE 6, ')
  out = tmp_path / 'a' / 'b'
  assert sorted(path.name for path in out.iterdir()) == ['000000', 'grid.png', 'manifest.json',
                                                         'run.json']
  for name in ('000005.png', '000008.png', '000009.png'):
    with Image.open(out / '000000' / name) as picture:
      pixels = np.asarray(picture)
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8 and pixels.max() > 200
  manifest = json.loads((out / 'manifest.json').read_text())
  assert manifest['seeds'] == [5, 8, 9] and manifest['labels'] == [4, 4, 4]
  assert manifest['nfe'] == 6 and manifest['solver']['eta'] == 0.5
  assert manifest['config']['limit'] == 'clip'
  assert manifest['schedule']['rho'] == 5 and len(manifest['sigmas']) == 7


BLURRY = '--config.input.images=gaussian_digits'


@pytest.mark.parametrize('flags, told, files', [
    (['--mode=invert', '--config.solver.name=euler', BLURRY], 'RMS error', {
        '000000.png', '000001.png', '000002.png', 'latents', 'grid.png', 'manifest.json',
        'run.json'}),
    (['--mode=likelihood', '--config.solver.name=ddpm', BLURRY], 'bits per dimension', {
        'likelihood.json', 'likelihood.png', 'parts', 'run.json'}),
    (['--mode=likelihood', '--config.likelihood.solver=heun_log', BLURRY], 'bits per dimension', {
        'likelihood.json', 'likelihood.png', 'parts', 'run.json'}),
    ([f'--config={ROOT}/configs/inpaint.py'], 'inpaint of', {
        '000000.png', '000001.png', '000002.png', 'grid.png', 'manifest.json', 'run.json'}),
])
def test_jobs_and_tasks_on_the_bundled_model(tmp_path, flags, told, files):
  result = run_main(tmp_path, *flags, '--config.model.name=digits_exact', '--workdir=a',
                    '--config.schedule.num_steps=10', '--config.seeds=0-2')
  assert (result.returncode, result.stderr) == (0, '')
  assert told in result.stdout
  assert {path.name for path in (tmp_path / 'a').iterdir()} == files


def test_samples_are_compared_measured_and_analyzed(tmp_path):
  small = ('--config.seeds=0-3', '--config.schedule.num_steps=4',
           '--config.model.name=digits_exact')
  result = run_main(tmp_path, *small)
  assert (result.returncode, result.stderr) == (0, '')
  for flags, told, files in (
      (['--mode=evaluate', '--config.evaluate.images=out'], 'FD-digits ', {
          'evaluate.json', 'features', 'run.json'}),
      (['--mode=analyze', *small, '--config.analyze.num_points=9', '--config.analyze.window=5'],
       'analysis.json', {'analysis.json', 'run.json', 'analysis.png'}),
      (['--mode=compare', '--config.compare.solvers=euler; unipc(max_order=2|3)',
        '--config.compare.schedules=logsnr', '--config.compare.nfe=4', small[-1],
        '--config.compare.seeds=0-7', '--config.compare.search=2', '--config.compare.shown=3',
        '--config.compare.resamples=20', '--config.compare.tolerance=0.1'], 'NFE   4: ', {
            'index.html', 'compare.json', 'compare.csv', 'error.png', 'distance.png', 'cells',
            'search', 'reference.npz', 'run.json'})):
    result = run_main(tmp_path, *flags)
    assert (result.returncode, result.stderr) == (0, '')
    assert told in result.stdout
    mode = flags[0].removeprefix('--mode=')
    assert files <= {path.name for path in (tmp_path / 'out' / mode).iterdir()}


def test_search_and_distill_run_on_the_bundled_model_and_what_they_make_samples(tmp_path):
  small = '--config.seeds=0-3', '--config.batch_size=4'
  exact = '--config.model.name=digits_exact'
  for flags, told, files in (
      (['--mode=search', exact, '--config.search.num_steps=2', '--config.search.teacher_steps=6',
        '--config.search.warm_up=4'], 'grid-2.json', {
            'grid-2.json', 'grid-2.diffusers.txt', 'grid-2.comfyui.txt', 'costs.png', 'costs.npz',
            'search.json', 'run.json'}),
      (['--config.schedule.name=explicit', '--config.schedule.path=out/search/grid-2.json',
        '--config.solver.name=euler', '--workdir=out/on_grid', exact],
       'euler on explicit, NFE 2', {'grid.png'}),
      (['--mode=search', exact, '--config.search.method=dpm_v3', '--config.search.levels=8',
        '--config.search.warm_up=4', '--config.search.teacher_steps=4', '--workdir=out/measured'],
       'statistics of digits_exact at 9 levels', {
           'statistics.npz', 'statistics.png', 'search.json', 'run.json'}),
      (['--config.solver.name=dpm_solver_v3', '--config.schedule.num_steps=4', exact,
        '--config.solver.statistics=out/measured/statistics.npz', '--workdir=out/with_them'],
       'dpm_solver_v3 on polynomial, NFE 4', {'grid.png'}),
      (['--mode=distill', '--config.model.name=digits_early', '--config.distill.num_steps=2',
        '--config.distill.M=1', '--config.distill.trajectories=4',
        '--config.distill.batch_size=4'],
       'euler on polynomial, NFE 1', {'model', 'samples', 'metrics.jsonl', 'metrics.png',
                                      'run.json'})):
    result = run_main(tmp_path, *flags, *small)
    assert (result.returncode, result.stderr) == (0, '')
    assert told in result.stdout
    given = [flag for flag in flags if flag.startswith('--workdir=')]
    folder = given[0].removeprefix('--workdir=') if given else f'out/{flags[0][7:]}'
    assert files <= {path.name for path in (tmp_path / folder).iterdir()}


BAD = [
    (['--mode=generat'],
     "unknown --mode 'generat'; did you mean generate? known: analyze, compare, convert, distill, "
     'evaluate, generate, invert, likelihood, search, train, train_amed'),
    (['--config.solver.etta=1'], "unknown config field 'solver.etta'; did you mean 'solver.eta'?"),
    (['--config.solver.eta=much'], 'flag --config.solver.eta=much: could not convert'),
    (['--config.seeds=9-3'], "seeds: a range must run upwards, got '9-3'; write 3-9"),
    (['--config.labels=10', '--config.model.name=digits_exact'],
     "labels: classes must be from 0 to 9, got 10 in '10'"),
    (['--config.model.path=file'], 'load: '),
    (['--config.solver=heun'], 'flag --config.solver=heun: is a group; set its fields, as in'),
    (['--config=nofile.py'], '--config: must be a Python file with get_config(), got nothing at'),
    (['--config=file'], '--config: file must give a config by get_config(), got SyntaxError'),
    ([f'--config={ROOT}/configs/edm_cifar10.py:bad'],
     f'--config: {ROOT}/configs/edm_cifar10.py must give a config by get_config(), got ValueError: '
     'variant must be one of uncond-vp, '),
    (['word'], "takes flags only, got 'word'; a flag starts with --"),
    (['--workdir=file'], 'workdir: must be a folder, got the file file; choose another'),
]

# One process imports all that is slow, and one that it forks runs main.py, for each folder that
# has arguments. A program is compiled by none of them, so no thread is lost with the fork.
FORKED = '''
import json, os, pathlib, runpy, sys
import engine.commandline, engine.generate
for arguments in sorted(pathlib.Path('.').glob('*/argv.json')):
  if not os.fork():
    os.chdir(arguments.parent)
    sys.argv = json.loads(pathlib.Path('argv.json').read_text())
    for name, descriptor in (('stdout', 1), ('stderr', 2)):
      os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), descriptor)
    runpy.run_path(sys.argv[0], run_name='__main__')
    os._exit(0)
  code = os.waitstatus_to_exitcode(os.wait()[1])
  (arguments.parent / 'code').write_text(str(code))
'''


@pytest.fixture(scope='module')
def refused(tmp_path_factory):
  """A folder for every case of BAD in which main.py ran, with what it said."""
  top = tmp_path_factory.mktemp('refused')
  for index, (flags, _) in enumerate(BAD):
    folder = top / f'{index:02}'
    folder.mkdir()
    (folder / 'file').write_text('no config')
    (folder / 'argv.json').write_text(json.dumps([str(ROOT / 'main.py'), *flags]))
  subprocess.run([sys.executable, '-c', FORKED], cwd=top, check=True, timeout=300,
                 env={**os.environ, 'PYTHONPATH': str(ROOT)})
  return top


@pytest.mark.parametrize('index', range(len(BAD)), ids=lambda index: BAD[index][0][0])
def test_bad_input_is_one_line_and_leaves_nothing(refused, index):
  folder = refused / f'{index:02}'
  assert (folder / 'code').read_text() == '2' and (folder / 'stdout').read_text() == ''
  line, = (folder / 'stderr').read_text().splitlines()
  assert line.startswith(f'main.py: {BAD[index][1]}')
  assert {path.name for path in folder.iterdir()} == {'file', 'argv.json', 'code', 'stdout',
                                                      'stderr'}


def test_a_second_run_has_nothing_to_do_or_is_refused(complete):
  assert run_main(complete, *SMALL).stdout.startswith('nothing to do: 5 images in out are complete')
  result = run_main(complete, *SMALL, '--config.solver.name=heun')
  assert result.returncode == 2
  assert result.stderr == (
      'main.py: workdir: must be empty or hold a run of the same config, got out with '
      "config.solver.name 'euler' (now 'heun'); choose another --workdir or delete it\n")


@pytest.mark.usefixtures('complete')
def test_no_room_is_one_line_and_nothing_half_written(tmp_path):
  # Images fit, the grid does not.
  code = (f'import resource, runpy\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n'
          f'runpy.run_path({str(ROOT / "main.py")!r}, run_name="__main__")')
  result = subprocess.run([sys.executable, '-c', code, *SMALL], cwd=tmp_path, check=False,
                          capture_output=True, text=True, timeout=300,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})
  assert (result.returncode, result.stdout) == (1, '')
  assert result.stderr == (
      'main.py: files: out/grid.png must be writable, got File too large; make room or choose '
      'another --workdir; finished files stay, and the same command goes on from there\n')
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
      *(f'00000{seed}.png' for seed in range(5)), 'run.json']


def test_an_interrupt_is_one_line_and_leaves_whole_files(tmp_path):
  # A shell starts what it runs in the background with this signal ignored, so the child first sets
  # it back (in a program of its own, since JAX warns where a process that uses it forks).
  listen = ('import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); '
            'os.execv(sys.executable, [sys.executable, *sys.argv[1:]])')
  process = subprocess.Popen(
      [sys.executable, '-c', listen, ROOT / 'main.py', *SMALL, '--config.seeds=0-19999'],
      cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  while process.poll() is None and not list(tmp_path.glob('out/0*.png')):
    time.sleep(0.01)
  process.send_signal(signal.SIGINT)
  try:
    out, error = process.communicate(timeout=6)
  except subprocess.TimeoutExpired:  # Python drops it while it collects garbage; as a user would:
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
  assert (process.returncode, out) == (130, '')
  assert error == ('main.py: interrupted; finished files stay, and the same command goes on from '
                   'there\n')
  found = list((tmp_path / 'out').iterdir())
  assert 1 < len(found) < 20_000 and not [path for path in found if path.name.startswith('.')]


def on_terminal(folder, *flags):
  """Runs main.py with a terminal of 100 columns for its errors; returns what it shows there."""
  ours, theirs = pty.openpty()
  with os.fdopen(ours, 'rb', buffering=0) as terminal:
    process = subprocess.Popen([sys.executable, ROOT / 'main.py', *flags], cwd=folder,
                               stdout=subprocess.PIPE, stderr=theirs,
                               env={**os.environ, 'COLUMNS': '100'})
    os.close(theirs)
    shown = b''
    try:
      while part := terminal.read(4096):
        shown += part
    except OSError:  # How Linux says that the other end is closed.
      pass
    process.communicate(timeout=60)
  assert process.returncode == 0
  return shown.decode()


def test_a_terminal_shows_images_per_second_unless_quiet(tmp_path):
  shown = on_terminal(tmp_path, *SMALL)
  assert re.search(r'sampling: 100%.* 5/5 .* images/s\]', shown)
  assert on_terminal(tmp_path, *SMALL, '--workdir=quiet', '--quiet') == ''


def test_compiled_programs_are_kept_for_the_user_alone_unless_switched_off(tmp_path):
  environment = {'XDG_CACHE_HOME': str(tmp_path), 'JAX_COMPILATION_CACHE_DIR': ''}
  kept = tmp_path / 'fewstep'
  assert run_main(tmp_path, *SMALL, **environment).stderr == ''
  assert stat.S_IMODE(kept.stat().st_mode) == 0o700 and list(kept.iterdir())
  before = sorted(kept.iterdir())
  assert run_main(tmp_path, *SMALL, '--workdir=again', **environment).stderr == ''
  assert sorted(kept.iterdir()) == before  # Everything was there.
  environment['XDG_CACHE_HOME'] = str(tmp_path / 'other')
  result = run_main(tmp_path, *SMALL, '--nocompilation_cache', **environment)
  assert result.stdout.startswith('nothing to do') and not (tmp_path / 'other').exists()


def test_main_is_short():
  assert len((ROOT / 'main.py').read_text().splitlines()) < 80


def test_config_has_an_empty_field_for_every_option():
  config = default.get_config()
  guidance = samplers.guidance
  for group, registry, options in (
      (config.solver, samplers.SOLVERS | samplers.LOOPS, samplers.options),
      (config.schedule, samplers.SCHEDULES, samplers.schedule_options),
      (config.guidance, guidance.METHODS, guidance.options)):
    for name in registry:
      for option in options(name):
        assert group[option] is None, (name, option)
  assert config.solver.get_type('max_order') is int
  assert config.solver.get_type('eta') is float
  assert config.solver.get_type('afs') is bool
  assert config.schedule.get_type('rho') is float  # Its default is an integer.
  assert config.schedule.get_type('linear_steps') is int
  assert config.schedule.get_type('sigmas') is str
  with pytest.raises(AttributeError, match='Did you mean "eta"'):
    config.solver.etta = 1.0
