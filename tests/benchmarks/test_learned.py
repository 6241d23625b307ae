"""The report on learned solvers runs."""

import re

from benchmarks import learned


def test_a_small_report(tmp_path, monkeypatch, capsys):
  config = learned.configured
  monkeypatch.setattr(learned, 'configured', lambda fields: config(
      {**fields, 'model.name': 'digits_exact', 'batch_size': 8}))
  monkeypatch.setattr(learned, 'SEEDS', '0-7')
  monkeypatch.setattr(learned, 'MANY', '0-15')
  monkeypatch.setattr(learned, '_REFERENCE', 0.1)
  monkeypatch.setattr(learned.devices, 'use_cores', lambda: None)  # Too late in this process.
  monkeypatch.setattr('sys.argv', ['learned', '--only', 'iPNDM,UniPC', '--nfe', '3'])
  monkeypatch.setattr(learned, 'ENTRIES', {
      name: make for name, make in learned.ENTRIES.items() if name != 'AMED-Plugin on iPNDM'
      and not name.startswith(('iPNDM +', 'EPD'))})
  monkeypatch.chdir(tmp_path)
  learned.main()
  told = capsys.readouterr().out
  assert re.search(r'\| iPNDM \| (\*\*)?0\.\d{3}', told) and '| UniPC |' in told
  assert '| NFE 3 |' in told and not (tmp_path / 'README.md').exists()
