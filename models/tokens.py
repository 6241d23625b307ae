"""CLIP's byte-pair encoding: texts to ids, with a vocabulary that the user has.

A text is cleaned, split into words, and each word, as bytes, is merged pair by pair in the order of
the vocabulary's list (Sennrich et al. 2016, arXiv:1508.07909, Algorithm 1). Two conventions differ
in how a text is cleaned and what a short one is filled up with; see CONVENTIONS.
"""

import collections
import dataclasses
import gzip
import html
import json
import os
import pathlib
import re
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from samplers import checks

CONVENTIONS = 'openai', 'transformers'
"""How texts are treated.

'openai' (also open_clip): HTML entities are resolved, quotes, ligatures and wide letters made
plain, and control characters taken out, as the package ftfy does; its repair of wrongly decoded
texts is left out. Filled up with 0.
'transformers' (also diffusers): composed letters alone, as its fast tokenizers do. Filled up with
the token that its files name, mostly the end token.
"""

CONTEXT = 77
"""Tokens of a text in published models, with start and end."""

_START, _END = '<|startoftext|>', '<|endoftext|>'
_WORD_END = '</w>'
_OPENAI_MERGES = 49152 - 256 - 2  # That its file is cut off to.

_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
# The Unicode property; str.isspace also has four separators of files.
_SPACE = re.compile('[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+')
_CONTROLS = *range(0x09), 0x0b, *range(0x0e, 0x20), 0x7f, *range(0x206a, 0x2070), 0xfeff
_PLAIN = str.maketrans({**dict.fromkeys(_CONTROLS),
                        **dict.fromkeys('\u02bc\u2018\u2019\u201a\u201b', "'"),
                        **dict.fromkeys('\u201c\u201d\u201e\u201f', '"')})
_WIDE = re.compile('[\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3\ufb00-\ufb06\uff01-\uffee]')


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """A vocabulary and how to use it.

  Attributes:
    vocab: token -> id. Bytes of a token are printable characters, and the last one of a word is
      marked.
    ranks: pair of tokens that may be merged -> its place in the order of merging.
    pad: id that a short text is filled up with.
    convention: one of CONVENTIONS.
  """

  vocab: Mapping[str, int]
  ranks: Mapping[tuple[str, str], int]
  pad: int
  convention: str

  @classmethod
  def load(cls, path: str | os.PathLike, convention: str | None = None) -> 'Tokenizer':
    """Loads a vocabulary.

    Args:
      path: a folder with transformers' vocab.json and merges.txt, or OpenAI's file
        bpe_simple_vocab_16e6.txt.gz, packed or not.
      convention: one of CONVENTIONS; None: that of the files.

    Returns:
      The Tokenizer.

    Raises:
      OSError: if a file cannot be read.
      ValueError: if the convention is unknown, or the files are no such vocabulary.
    """
    path = pathlib.Path(path)
    if convention is not None:
      checks.check_choice('tokens', 'convention', convention, CONVENTIONS)
    if path.is_dir():
      vocab, merges, pad = _read_folder(path)
      own = 'transformers'
    else:
      merges = _read_merges(path)[:_OPENAI_MERGES]
      vocab, pad, own = _vocabulary(merges), 0, 'openai'
    missing = [token for token in (_START, _END) if token not in vocab]
    if missing:
      raise ValueError(f'tokens: vocabulary in {path} must have {missing[0]}, got none; take that '
                       'of a CLIP')
    convention = convention or own
    pad = 0 if convention == 'openai' else vocab[_END] if pad is None or own == 'openai' else pad
    return cls(vocab, {merge: rank for rank, merge in enumerate(merges)}, pad, convention)

  @classmethod
  def from_merges(cls, merges: Sequence[str], pad: int | None = None,
                  convention: str = 'transformers') -> 'Tokenizer':
    """Makes CLIP's vocabulary of its list of merges, from which all of it follows.

    Its ids are 256 bytes, 256 bytes that end a word, one token for each merge, start and end.

    Args:
      merges: two tokens with a space between, in the order of merging.
      pad: id that a short text is filled up with; None: the end token, or 0 with 'openai'.
      convention: one of CONVENTIONS.

    Returns:
      The Tokenizer.

    Raises:
      ValueError: if the merges are no such list, or pad or the convention is unknown.
    """
    checks.check_choice('tokens', 'convention', convention, CONVENTIONS)
    if isinstance(merges, str) or not isinstance(merges, Sequence):
      raise ValueError(f'tokens: merges must be a list of texts, got {str(merges)[:40]!r}; give '
                       'one text for each')
    bad = next((text for text in merges if not isinstance(text, str) or len(text.split()) != 2),
               None)
    if bad is not None:
      raise ValueError('tokens: merges must be of two tokens with a space between, got '
                       f'{str(bad)[:40]!r}; take the lines of a merges.txt but its first')
    pairs = [tuple(text.split()) for text in merges]
    twice = next((token for token, count in collections.Counter(_tokens(pairs)).items()
                  if count > 1), None)
    if twice is not None:
      raise ValueError(f'tokens: merges must each give a new token, got {twice[:40]!r} twice; take '
                       'the lines of a merges.txt as they are')
    vocab = _vocabulary(pairs)
    pad = (0 if convention == 'openai' else vocab[_END]) if pad is None else pad
    if not checks.is_integer(pad) or not 0 <= pad < len(vocab):
      raise ValueError(f'tokens: pad must be an id below {len(vocab)}, got {pad!r}; the end token '
                       f'is {vocab[_END]}')
    return cls(vocab, {pair: rank for rank, pair in enumerate(pairs)}, pad, convention)

  def merges(self) -> list[str]:
    """Returns the list that `from_merges` makes this vocabulary of.

    Raises:
      ValueError: if the vocabulary is another one than follows from its merges.
    """
    pairs = sorted(self.ranks, key=self.ranks.__getitem__)
    follows = _vocabulary(pairs)
    if self.vocab != follows:
      other = next(token for token in {**follows, **self.vocab}
                   if self.vocab.get(token) != follows.get(token))
      raise ValueError(f'tokens: vocabulary must be the one that follows from its merges, got '
                       f'{other[:40]!r} with the id {self.vocab.get(other)} and not '
                       f'{follows.get(other)}; take the vocabulary of a CLIP, without tokens of '
                       'your own')
    return [' '.join(pair) for pair in pairs]

  def encode(self, texts: Sequence[str], context: int = CONTEXT) -> np.ndarray:
    """Encodes texts: the start token, those of the text as far as they fit, the end token, filling.

    Args:
      texts: any length; letters are made small.
      context: tokens of each result, 2 or more.

    Returns:
      int32 (n, context).

    Raises:
      ValueError: if the texts are no list of texts, or the context is too short.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
      raise ValueError('tokens: texts must be a list of texts, got '
                       f'{str(texts)[:80]!r}; put one text in a list')
    if not checks.is_integer(context) or context < 2:
      raise ValueError(f'tokens: context must be an integer of 2 or more, got {context!r}; take '
                       'that of the network')
    result = np.full((len(texts), context), self.pad, np.int32)
    start, end = self.vocab[_START], self.vocab[_END]
    known = {}  # Words repeat.
    for row, text in zip(result, texts, strict=True):
      ids = [start]
      for word in words(text, self.convention):
        if len(ids) >= context - 1:
          break
        if word not in known:
          # A token that a cut vocabulary lacks is the end token, as in transformers.
          known[word] = [self.vocab.get(token, end) for token in self._merge(word)]
        ids += known[word]
      ids = [*ids[:context - 1], end]
      row[:len(ids)] = ids
    return result

  def _merge(self, word: str) -> list[str]:
    """Returns the tokens of a word."""
    if word in (_START, _END):
      return [word]
    letters = _byte_letters()
    tokens = [letters[byte] for byte in word.encode('utf-8', 'replace')]
    tokens[-1] += _WORD_END
    while True:
      pairs = [pair for pair in zip(tokens, tokens[1:], strict=False) if pair in self.ranks]
      if not pairs:
        return tokens
      best = min(pairs, key=self.ranks.__getitem__)
      merged, i = [], 0
      while i < len(tokens):  # All places of the pair, from the left.
        step = 1 + (tuple(tokens[i:i + 2]) == best)
        merged.append(''.join(tokens[i:i + step]))
        i += step
      tokens = merged


def words(text: str, convention: str) -> Iterator[str]:
  """Cleans and splits a text: special tokens, contractions, letters, single digits, the rest.

  Args:
    text: any text; special tokens in it count as such.
    convention: one of CONVENTIONS.

  Yields:
    The words.
  """
  if convention == 'openai':
    text = html.unescape(html.unescape(text)).translate(_PLAIN)
    text = _WIDE.sub(lambda match: unicodedata.normalize('NFKC', match.group()), text)
    yield from _split(_compose(text).strip().lower(), (_START, _END, *_CONTRACTIONS))
    return
  # Special tokens first, wherever they stand, as they are written.
  for part in re.split(f'({re.escape(_START)}|{re.escape(_END)})', text):
    if part in (_START, _END):
      yield part
    else:  # Letter by letter: Python would give a sigma at the end of a word another form.
      yield from _split(''.join(map(str.lower, _compose(part))), _CONTRACTIONS)


def _compose(text):
  return _SPACE.sub(' ', unicodedata.normalize('NFC', text))


def _split(text, units):
  """Splits into the units, runs of letters, single digits and runs of the rest, from the left."""
  i = 0
  while i < len(text):
    whole = next((word for word in units if text.startswith(word, i)), None)
    kind, end = _kind(text[i]), i + 1
    if whole:
      end = i + len(whole)
    elif kind != 'N':
      while end < len(text) and _kind(text[end]) == kind:
        end += 1
    if kind != ' ':
      yield text[i:end]
    i = end


def _kind(character):
  """'L' for a letter, 'N' for a number, ' ' for a space, '' for any other."""
  category = unicodedata.category(character)[0]
  return category if category in 'LN' else ' ' if _SPACE.match(character) else ''


def _byte_letters() -> dict[int, str]:
  """Byte -> the printable character that stands for it, in the order of the first ids.

  Printable ones of Latin-1 stand for themselves, the others are counted from U+0100.
  """
  own = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
  others = [byte for byte in range(256) if byte not in own]
  return {**{byte: chr(byte) for byte in own},
          **{byte: chr(256 + i) for i, byte in enumerate(others)}}


def _tokens(pairs):
  """The tokens of a list of merges in the order of their ids."""
  letters = [*_byte_letters().values()]
  return [*letters, *(letter + _WORD_END for letter in letters), *map(''.join, pairs), _START, _END]


def _vocabulary(pairs):
  return {token: i for i, token in enumerate(_tokens(pairs))}


def _read_folder(folder):
  """(vocab, merges, id to fill up with or None) of transformers' files."""
  vocab = read_object(folder / 'vocab.json')
  if vocab is None:
    raise ValueError('tokens: vocabulary must be a folder with vocab.json and merges.txt, or '
                     f"OpenAI's bpe_simple_vocab_16e6.txt.gz, got {folder} without vocab.json; "
                     'name the folder of the tokenizer')
  if not all(checks.is_integer(value) and value >= 0 for value in vocab.values()):
    raise ValueError(f'tokens: {folder / "vocab.json"} must give an id for each token, got others; '
                     'download it again')
  for name in ('special_tokens_map.json', 'tokenizer_config.json'):
    pad = (read_object(folder / name) or {}).get('pad_token')
    pad = pad.get('content') if isinstance(pad, dict) else pad
    if isinstance(pad, str) and pad in vocab:
      return vocab, _read_merges(folder / 'merges.txt'), vocab[pad]
  return vocab, _read_merges(folder / 'merges.txt'), None


def read_object(path: pathlib.Path, who: str = 'tokens') -> dict[str, Any] | None:
  """Returns the object in a JSON file, None if there is no file.

  Args:
    path: of the file.
    who: asks, for the error.

  Raises:
    ValueError: if it holds something else.
  """
  if not path.is_file():
    return None
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{who}: {path} must be JSON, got {error}; download it again') from None
  if not isinstance(content, dict):
    raise ValueError(f'{who}: {path} must be a JSON object, got a {type(content).__name__}; '
                     'download it again')
  return content


def _read_merges(path):
  """The pairs of a list of merges, whose first line is a heading."""
  try:
    data = path.read_bytes()
    data = gzip.decompress(data) if data.startswith(b'\x1f\x8b') else data
    lines = data.decode('utf-8').split('\n')
  except FileNotFoundError:
    raise ValueError(f'tokens: vocabulary must have the list of merges {path}, got none there; '
                     "name the folder of the tokenizer, or OpenAI's file") from None
  except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
    raise ValueError(f'tokens: {path} must be a list of merges, got {type(error).__name__}; '
                     'download it again') from None
  merges = [tuple(line.split()) for line in lines[1:] if line.strip()]
  bad = next((merge for merge in merges if len(merge) != 2), None)
  if bad is not None or not merges:
    raise ValueError(f'tokens: {path} must be a list of merges, two tokens a line, got '
                     f'{"none" if bad is None else " ".join(bad)[:40]!r}; download it again')
  return merges
