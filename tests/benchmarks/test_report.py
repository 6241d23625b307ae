"""Every program writes its own section of the page."""

from benchmarks import report


def test_sections_are_replaced_or_added_and_others_stay(tmp_path):
  page = tmp_path / 'README.md'
  report.write_section('First', 'one\n\n### Part\n\nrest', page)
  report.write_section('Second', 'two', page)
  report.write_section('First', 'new\n', page)
  assert page.read_text() == '# Benchmarks\n\n## First\n\nnew\n\n## Second\n\ntwo\n'
  report.write_section('First', 'new\n', page)
  assert page.read_text().count('## First') == 1


def test_a_section_written_again_leaves_the_page_as_it_is(tmp_path):
  page = tmp_path / 'README.md'
  page.write_text(report.PAGE.read_text())
  title, text = report.PAGE.read_text().split('\n## ')[1].split('\n', 1)
  report.write_section(title, text, page)
  assert page.read_text() == report.PAGE.read_text()
