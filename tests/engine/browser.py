"""Debian's Chromium without a window, for tests of pages.

Speaks the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/) through a pair
of pipes: no port, no driver, nothing to download.
"""

import base64
import contextlib
import io
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

import numpy as np
import pytest
from PIL import Image

_SECONDS = 30  # Any answer takes less, even on a busy machine.
_FLAGS = ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
          '--disable-background-networking', '--disable-component-update', '--disable-sync',
          '--disable-extensions', '--disable-dev-shm-usage', '--hide-scrollbars',
          '--remote-debugging-pipe')


class Browser:
  """One tab. Errors and requests of a page are collected from `open` on.

  Attributes:
    errors: what went wrong in the page: exceptions, errors of the console, refused loads.
    requests: addresses that were asked for, but for the page itself and data in it.
  """

  def __init__(self, read, write):
    self._read, self._write = read, write
    self._number, self._buffer, self._answers = 0, b'', {}
    self._session = None
    self.errors, self.requests, self._page = [], [], None
    target = self.call('Target.createTarget', url='about:blank')['targetId']
    self._session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
    for domain in ('Page', 'Runtime', 'Log', 'Network'):
      self.call(f'{domain}.enable')

  def open(self, path, width=1280, height=900, dark=False):
    """Loads a file in a window of this size, in CSS pixels, and waits until it is there."""
    self.call('Emulation.setDeviceMetricsOverride', width=width, height=height,
              deviceScaleFactor=1, mobile=False)
    self.call('Emulation.setEmulatedMedia', features=[
        {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}])
    self.errors.clear()
    self.requests.clear()
    self._page = path.resolve().as_uri()
    loaded = self.call('Page.navigate', url=self._page)
    assert 'errorText' not in loaded, loaded
    deadline = time.monotonic() + _SECONDS
    while self.run('document.readyState + location.href') != f'complete{self._page}':
      assert time.monotonic() < deadline, f'{path} did not load'
      time.sleep(0.02)

  def run(self, script):
    """Returns the value of an expression of JavaScript, awaited if it is a promise."""
    result = self.call('Runtime.evaluate', expression=script, returnByValue=True,
                       awaitPromise=True, userGesture=True)
    if 'exceptionDetails' in result:
      raise RuntimeError(f'{script}: {result["exceptionDetails"]}')
    return result['result'].get('value')

  def texts(self, selector):
    """Returns the text of all elements of a selector that are shown."""
    return self.run(f'[...document.querySelectorAll({json.dumps(selector)})]'
                    '.filter(e => e.offsetParent).map(e => e.innerText)')

  def click(self, selector):
    """Clicks with the mouse into the middle of the first element shown, scrolled to."""
    x, y = self.run(
        f'(() => {{ const e = [...document.querySelectorAll({json.dumps(selector)})]'
        ".find(e => e.offsetParent); e.scrollIntoView({block: 'center', behavior: 'instant'});"
        'const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()')
    for kind in ('mousePressed', 'mouseReleased'):
      self.call('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='left', clickCount=1)

  def type(self, selector, text):
    """Types into a field that a click gives the focus."""
    self.click(selector)
    self.call('Input.insertText', text=text)

  def screenshot(self, whole=False):
    """Returns what is in the window, or the whole page: uint8 (height, width, 3)."""
    content = self.call('Page.captureScreenshot', format='png', captureBeyondViewport=whole,
                        **({'clip': self._whole()} if whole else {}))
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content['data']))).convert('RGB'))

  def overflow(self):
    """Returns by how many pixels the page is wider than the window."""
    return self.run('document.documentElement.scrollWidth - innerWidth')

  def call(self, method, **parameters):
    """Calls a method of the protocol and returns its result."""
    self._number += 1
    message = {'id': self._number, 'method': method, 'params': parameters}
    if self._session:
      message['sessionId'] = self._session
    os.write(self._write, json.dumps(message).encode() + b'\0')
    deadline = time.monotonic() + _SECONDS
    while self._number not in self._answers:
      self._receive(method, deadline)
    answer = self._answers.pop(self._number)
    if 'error' in answer:
      raise RuntimeError(f'{method}: {answer["error"]}')
    return answer['result']

  def _whole(self):
    size = self.call('Page.getLayoutMetrics')['cssContentSize']
    return {'x': 0, 'y': 0, 'width': size['width'], 'height': size['height'], 'scale': 1}

  def _receive(self, method, deadline):
    ready = select.select([self._read], [], [], max(0, deadline - time.monotonic()))[0]
    content = os.read(self._read, 1 << 20) if ready else b''
    if not content:
      raise RuntimeError(f'{method}: no answer from Chromium')
    *messages, self._buffer = (self._buffer + content).split(b'\0')
    for message in map(json.loads, messages):
      if 'id' in message:
        self._answers[message['id']] = message
      else:
        self._note(message['method'], message['params'])

  def _note(self, event, parameters):
    if event == 'Runtime.exceptionThrown':
      self.errors.append(parameters['exceptionDetails'])
    elif event == 'Log.entryAdded' and parameters['entry']['level'] in ('error', 'warning'):
      self.errors.append(parameters['entry'])
    elif event == 'Runtime.consoleAPICalled' and parameters['type'] in ('error', 'warning'):
      self.errors.append(parameters['args'])
    elif event == 'Page.javascriptDialogOpening':
      self.errors.append(parameters['message'])
    elif event == 'Network.requestWillBeSent':
      url = parameters['request']['url']
      if url != self._page and not url.startswith('data:'):
        self.requests.append(url)


@contextlib.contextmanager
def start(program):
  """Starts Chromium with a new profile and ends it, and all of it, afterwards."""
  to_browser, write = os.pipe()
  read, from_browser = os.pipe()
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    # The protocol wants the descriptors 3 and 4; a shell renames ours without code after a fork.
    process = subprocess.Popen(
        ['bash', '-c', f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}', program, *_FLAGS,
         f'--user-data-dir={profile}'], pass_fds=(to_browser, from_browser),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(to_browser)
    os.close(from_browser)
    try:
      browser = Browser(read, write)
      yield browser
      browser._session = None
      browser.call('Browser.close')
      process.wait(_SECONDS)
    finally:
      os.close(write)  # Chromium ends when its pipe does.
      os.close(read)
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
      process.kill()
      process.wait()


@pytest.fixture(scope='module')
def chromium():
  """A Browser; the test is skipped where Chromium is not installed."""
  program = shutil.which('chromium')
  if program is None or shutil.which('bash') is None:
    pytest.skip('needs chromium: apt-get install chromium')
  with start(program) as browser:
    yield browser
