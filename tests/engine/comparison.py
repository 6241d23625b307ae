"""A comparison as `--mode=compare` reports it, made up: numbers of a law, pictures of digits."""

import io

import numpy as np
from PIL import Image

from models import digits

ORDERS = {'euler': 1.0, 'heun': 2.0, 'dpmpp': 2.0, 'unipc': 3.0, 'ipndm': 2.0, 'seeds': None}
NFE = 5, 8, 12, 20, 40
SHOWN = 16
ERROR = 2e-5  # Of the reference.


def make(nasty=''):
  """Returns a report of 2 x 6 x 5 cells, where 'seeds' draws noise, and its strips.

  Args:
    nasty: a text put wherever a text of the user's may stand.
  """
  rng = np.random.default_rng(0)
  clean = digits.images()[0][rng.permutation(10782)[:SHOWN]]
  noise = rng.normal(size=clean.shape)
  cells, strips = [], {'reference': strip(clean)}
  for number, (solver, order) in enumerate(ORDERS.items()):
    for nfe in NFE:
      for rho, common in ((7.0, True), (5.0, False)):
        factor = (2 + 0.4 * number) * (1 if common else 0.8)
        rms = None if order is None else factor / nfe ** order + ERROR
        frechet = 6 + 300 * (rms or 0.6 / nfe) ** 1.3 + 0.2 * number
        name = f'{solver}-{nfe}-{rho:g}'
        strips[name] = strip(clean + noise * (rms or 0.2) * 2)
        cells.append({
            'id': name, 'solver': solver, 'options': {'max_order': 3} | (
                {'variant': nasty} if nasty else {}),
            'schedule': {'name': 'polynomial', 'rho': rho}, 'num_steps': nfe, 'nfe': nfe,
            'rms': rms, 'rms_interval': rms and [rms * 0.95, rms * 1.06], 'frechet': frechet,
            'frechet_interval': [frechet * 0.93, frechet * 1.08], 'seconds': 0.02 * nfe,
            'images_per_second': 12800 / nfe, 'network_seconds': 0.018 * nfe, 'common': common,
            'best': not common, 'strip': name,
            'command': f"python main.py --config.solver.name={solver}{nasty} "
                       f"--config.schedule.num_steps={nfe}",
            'config': {'solver.name': solver, 'schedule.rho': rho, 'note': nasty}})
  orders = {solver: order and {'order': order, 'nfe': list(NFE[-3:]), 'setting': 'polynomial rho=7'}
            for solver, order in ORDERS.items()}
  report = {
      'format': 1, 'title': f'Solvers on the bundled digits{nasty}',
      'model': {'name': f'digits{nasty}', 'sha256': 'b2dab7b5' * 8, 'image_shape': [8, 8, 3]},
      'seeds': '0-255', 'count': 256, 'shown_seeds': list(range(SHOWN)),
      'machine': {'device': 'cpu, 2 cores', 'versions': {'jax': '0.10.2', 'numpy': '2.4.6'}},
      'reference': {'description': f'unipc, 400 steps{nasty}', 'nfe': 400, 'error': ERROR,
                    'strip': 'reference'},
      'frechet': {'name': 'FD-digits', 'description': 'features of the bundled classifier',
                  'pipeline': {'network': 'digits', 'resize': None, 'layers': ['pool']},
                  'floor': 5.5, 'level': 0.95, 'resamples': 200},
      'settings': {'guidance': 'none', 'labels': f'one per seed{nasty}'},
      'cells': cells, 'orders': orders}
  return report, strips


def strip(images):
  """PNG bytes of images (n, h, w, 3) in [-1, 1], side by side."""
  pixels = np.clip(np.concatenate(list(images), 1) * 127.5 + 128, 0, 255).astype(np.uint8)
  encoded = io.BytesIO()
  Image.fromarray(pixels).save(encoded, 'png')
  return encoded.getvalue()
