"""Files that are whole or not there, also from threads and on a full disk."""

import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from engine import files

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('old')
  with pytest.raises(KeyboardInterrupt), files.replacing(path) as file:
    file.write(b'half')
    raise KeyboardInterrupt
  assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]
  with files.replacing(path) as file:
    file.write(b'new')
  assert path.read_text() == 'new' and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_sentence_with_the_file_and_leaves_nothing(tmp_path):
  message = ('^files: .*a.txt must be writable, got No space left on device; make room or choose '
             'another --workdir; finished files stay')
  with pytest.raises(OSError, match=message), files.replacing(tmp_path / 'a.txt') as file:
    file.write(b'half')
    with open('/dev/full', 'wb') as full:
      full.write(b'rest')
  assert list(tmp_path.iterdir()) == []


def test_a_limit_on_the_size_of_files_is_found_by_the_write_itself(tmp_path):
  code = ('import pathlib, resource\n'
          'from engine import files\n'
          'resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n'
          'with files.replacing(pathlib.Path("a.txt")) as file:\n'
          '  file.write(bytes(10_000))\n')
  result = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True,
                          text=True, check=False, env={**os.environ, 'PYTHONPATH': str(ROOT)})
  assert 'files: a.txt must be writable, got File too large; make room' in result.stderr
  assert list(tmp_path.iterdir()) == []


def test_temporary_files_of_a_killed_process_are_removed_and_no_others(tmp_path):
  for name in ('.a.png.partial', 'a.png', 'b.partial', '.hidden'):
    (tmp_path / name).touch()
  files.remove_partial(tmp_path)
  files.remove_partial(tmp_path / 'nowhere')
  assert sorted(path.name for path in tmp_path.iterdir()) == ['.hidden', 'a.png', 'b.partial']


def test_threads_write_all_before_the_body_is_left():
  written = []
  def write(number):
    time.sleep(0.001)
    written.append(number)
  with files.in_background() as submit:
    for number in range(600):  # More than may wait.
      submit(write, number)
  assert sorted(written) == list(range(600))


def test_an_error_of_a_thread_stops_the_writer():
  submitted = []
  def fail(number):
    raise OSError(28, 'No space left on device')
  with pytest.raises(OSError, match='No space'), files.in_background() as submit:
    for number in range(1000):
      submit(fail, number)
      submitted.append(number)
      time.sleep(0.001)
  assert len(submitted) < 1000
  with pytest.raises(OSError, match='No space'), files.in_background() as submit:
    submit(fail, 0)  # Found at the end at the latest.


def test_an_interrupt_lets_writes_finish_that_have_begun_and_drops_the_others():
  begun, done, go = [], [], threading.Event()
  def write(number):
    begun.append(number)
    go.wait(5)
    done.append(number)
  with pytest.raises(KeyboardInterrupt), files.in_background() as submit:
    for number in range(100):
      submit(write, number)
    threading.Timer(0.1, go.set).start()
    raise KeyboardInterrupt
  assert sorted(done) == sorted(begun) and 0 < len(done) < 100


@pytest.mark.parametrize('name, message', [
    ('', "^workdir: must name a folder, got ''; "),
    ('file', '^workdir: must be a folder, got the file .*file; choose another one'),
    ('file/below', r'^workdir: must be a folder that can be written to, .* \(Not a directory\)'),
    ('/proc/below', r'^workdir: must be a folder that can be written to, .* \(No such file'),
])
def test_a_folder_that_cannot_be_used_is_explained(tmp_path, name, message):
  (tmp_path / 'file').touch()
  with pytest.raises(ValueError, match=message):
    files.check_folder(tmp_path / name if name else name)


def test_a_new_folder_is_made_and_left_empty(tmp_path):
  assert files.check_folder(tmp_path / 'new' / 'folder') == tmp_path / 'new' / 'folder'
  assert list((tmp_path / 'new' / 'folder').iterdir()) == []


def test_what_a_killed_process_left_is_removed_be_it_a_folder(tmp_path):
  (tmp_path / '.file.1234.partial').touch()
  (tmp_path / '.model.partial' / 'params').mkdir(parents=True)
  (tmp_path / '.model.partial' / 'params' / 'array').touch()
  (tmp_path / 'kept').touch()
  files.remove_partial(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['kept']
