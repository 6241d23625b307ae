"""Runs that are killed at random moments end, when started again, as if they had not been."""

import concurrent.futures
import contextlib
import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
SEEDS = 100


def start(folder, output):
  """Starts a run with many small batches, as a user would."""
  return subprocess.Popen(
      [sys.executable, ROOT / 'main.py', f'--workdir={folder}', f'--config.seeds=0-{SEEDS - 1}',
       '--config.model.name=digits_exact', '--config.batch_size=2', '--config.solver.name=euler',
       '--config.schedule.num_steps=2', f'--config.output.format={output}'],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
  """Waits for a run that nobody kills."""
  out, error = process.communicate(timeout=300)
  assert (process.returncode, error) == (0, '')
  return out


def pictures(folder):
  """Finished images, wherever they lie, with what changes if one is made again."""
  return {path: (path.stat().st_ino, path.stat().st_mtime_ns)
          for path in folder.rglob('*.png') if path.stem.isdigit()}


def count(folder):
  """Number of finished images; 0 while a finished npz takes them away."""
  with contextlib.suppress(FileNotFoundError):
    return sum(path.stem.isdigit() for path in folder.rglob('*.png'))
  return 0


def content(folder):
  """Bytes of all files, times in the manifest left out."""
  found = {str(path.relative_to(folder)): path.read_bytes()
           for path in folder.rglob('*') if path.is_file()}
  manifest = json.loads(found.pop('manifest.json'))
  del manifest['seconds'], manifest['images_per_second']
  return found, manifest


def until(process, condition):
  """Waits until something holds, or the process has ended."""
  while process.poll() is None and not condition():
    time.sleep(0.001)


def kill_at_random(folder, output, rng, moment):
  """Kills a run at a moment: a number of new images, or at its end.

  Returns:
    Whether it was still running.
  """
  there = count(folder)
  process = start(folder, output)
  if moment == 'images':
    goal = there + rng.integers(1, 14)
    until(process, lambda: count(folder) >= goal)
    time.sleep(rng.uniform(0, 0.02))
  else:
    complete = folder / 'manifest.json'
    until(process, lambda: count(folder) == SEEDS or complete.exists())
    time.sleep(rng.uniform(0, 0.08))
  process.send_signal(signal.SIGKILL)
  process.communicate()
  return process.returncode == -signal.SIGKILL


def killed_again_and_again(folder, output, seed):
  """Kills and restarts a run; finished images must stay as they are. Returns how many it hit."""
  rng, seen, hit = np.random.default_rng(seed), {}, 0
  for moment in ('images', 'images', 'end'):
    hit += kill_at_random(folder, output, rng, moment)
    found = pictures(folder)
    complete = (folder / 'manifest.json').exists()
    for path, stamp in seen.items():
      assert found.get(path) == stamp or (complete and output == 'npz'), path
    seen = found
  finish(start(folder, output))
  found = pictures(folder)
  for path, stamp in seen.items():
    assert found.get(path) == stamp or output == 'npz', path
  return hit


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """An uninterrupted run and one killed three times, for each format; two at a time."""
  top = tmp_path_factory.mktemp('killed')
  for output in ('png', 'npz'):  # One by one: the first compiles for all.
    finish(start(top / output, output))
  with concurrent.futures.ThreadPoolExecutor(2) as threads:
    hits = list(threads.map(killed_again_and_again, [top / 'killed_png', top / 'killed_npz'],
                            ['png', 'npz'], [0, 1]))
  return top, hits


def test_kills_hit_running_processes(folders):
  _, hits = folders
  assert sum(hits) >= 5  # One at the end may come too late.


@pytest.mark.parametrize('output', ['png', 'npz'])
def test_a_run_killed_again_and_again_ends_with_the_files_of_an_uninterrupted_one(folders, output):
  top, _ = folders
  files, manifest = content(top / output)
  killed_files, killed_manifest = content(top / f'killed_{output}')
  assert sorted(killed_files) == sorted(files)
  assert killed_files == files and killed_manifest == manifest
  assert len(manifest['seeds']) == SEEDS
  assert len(files) == {'png': SEEDS + 2, 'npz': 3}[output]
