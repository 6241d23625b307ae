"""The page benchmarks/README.md, a section for each program of this folder."""

import pathlib
import re

PAGE = pathlib.Path(__file__).parent / 'README.md'

_TITLE = '# Benchmarks\n'


def write_section(title: str, text: str, page: pathlib.Path = PAGE) -> None:
  """Puts a section into the page, in the place of the one with its title or at the end.

  Args:
    title: of the section, in '## title'.
    text: Markdown below the title; may have headings of lower rank.
    page: the file, new if it is not there.
  """
  content = page.read_text() if page.exists() else _TITLE
  head, *sections = re.split(r'(?m)^## ', content)
  new = f'{title}\n\n{text.strip()}\n\n'
  names = [section.splitlines()[0] for section in sections]
  if title in names:
    sections[names.index(title)] = new
  else:
    sections.append(new)
  sections = [f'## {section.strip()}\n' for section in sections]
  page.write_text('\n'.join([f'{head.strip()}\n', *sections]))
