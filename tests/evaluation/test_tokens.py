"""CLIP's tokenizer against the published ones on a small vocabulary, and bad files."""

import dataclasses
import gzip
import json
import shutil

import numpy as np
import pytest

from evaluation import tokens
from tests import reference

FOLDER = reference.GOLDEN / 'clip_image'
VOCABULARY = FOLDER / 'tokenizer'
PUBLISHED = json.loads((FOLDER / 'tokenizer.json').read_text())
RANDOM = json.loads((FOLDER / 'words.json').read_text())['cases']


@pytest.fixture
def tokenizer():
  return tokens.Tokenizer.load(VOCABULARY)


def openai_file(path, count=None):
  """Writes the small vocabulary's merges as OpenAI's file has them."""
  _, *merges = (VOCABULARY / 'merges.txt').read_text().strip().split('\n')
  path.write_bytes(gzip.compress('\n'.join(['"#version: 0.2', *merges[:count], '']).encode()))
  return path


def test_published_tokenizers_give_the_same_ids(tokenizer):
  assert len(PUBLISHED['texts']) == 16
  ids = tokenizer.encode(PUBLISHED['texts'])
  assert ids.dtype == np.int32
  np.testing.assert_array_equal(ids, PUBLISHED['input_ids_fast'])
  # The slow one cleans texts with ftfy.
  cleaned = dataclasses.replace(tokenizer, convention='openai').encode(PUBLISHED['texts'])
  np.testing.assert_array_equal(cleaned, PUBLISHED['input_ids'])


def test_characters_of_all_kinds(tokenizer):
  assert len(RANDOM) == 48
  for case, ids in zip(RANDOM, tokenizer.encode([case['text'] for case in RANDOM]), strict=True):
    assert ids[:len(case['ids'])].tolist() == case['ids'], ascii(case['text'])
    assert (ids[len(case['ids']):] == PUBLISHED['pad']).all()
    assert [*tokens.words(case['text'], 'openai')] == case['words'], ascii(case['text'])


def test_the_file_of_openai_holds_the_same_vocabulary(tokenizer, tmp_path):
  packed = tokens.Tokenizer.load(openai_file(tmp_path / 'vocabulary.txt.gz'))
  plain = tmp_path / 'vocabulary.txt'
  plain.write_bytes(gzip.decompress((tmp_path / 'vocabulary.txt.gz').read_bytes()))
  for own in (packed, tokens.Tokenizer.load(plain)):
    assert own.vocab == tokenizer.vocab and own.ranks == tokenizer.ranks
    assert (own.convention, own.pad) == ('openai', 0)
    ids = own.encode(PUBLISHED['texts'])
    ends = np.argmax(ids, 1)
    np.testing.assert_array_equal(ends, np.argmax(PUBLISHED['input_ids'], 1))
    for row, end, expected in zip(ids, ends, PUBLISHED['input_ids'], strict=True):
      end = max(end, np.flatnonzero(row)[-1])
      np.testing.assert_array_equal(row[:end + 1], expected[:end + 1])
      assert (row[end + 1:] == 0).all()
  filled = tokens.Tokenizer.load(plain, 'transformers')
  np.testing.assert_array_equal(filled.encode(PUBLISHED['texts']), PUBLISHED['input_ids_fast'])


def test_long_texts_are_cut_before_the_end_token(tokenizer):
  long, start, end = 'the dog ' * 40, PUBLISHED['bos'], PUBLISHED['eos']
  whole = tokenizer.encode([long], 200)[0]
  for context in (2, 3, 8):
    ids = tokenizer.encode([long, ''], context)
    assert ids[0].tolist() == [*whole[:context - 1], end]
    assert ids[1].tolist() == [start, *[end] * (context - 1)]
  assert tokenizer.encode([]).shape == (0, 77)


def test_the_token_to_fill_up_with_is_read(tmp_path):
  for name in ('vocab.json', 'merges.txt'):
    shutil.copyfile(VOCABULARY / name, tmp_path / name)
  def pad():
    return tokens.Tokenizer.load(tmp_path).encode(['a'], 4)[0].tolist()[-1]
  assert pad() == PUBLISHED['eos']
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'pad_token': {'content': '!'}}))
  assert pad() == tokens.Tokenizer.load(tmp_path).vocab['!'] == 0
  (tmp_path / 'special_tokens_map.json').write_text('{"pad_token": "<|startoftext|>"}')
  assert pad() == PUBLISHED['bos']


@pytest.mark.parametrize('files, match', [
    ({}, "folder with vocab.json and merges.txt, or OpenAI's .* without vocab.json; name"),
    ({'vocab.json': '{'}, 'vocab.json must be JSON, got Expecting'),
    ({'vocab.json': '[]'}, 'vocab.json must be a JSON object, got a list'),
    ({'vocab.json': '{"a": "b"}'}, 'must give an id for each token, got others'),
    ({'vocab.json': '{"a": 1}'}, 'must have the list of merges .*merges.txt, got none there'),
    ({'vocab.json': '{"a": 1}', 'merges.txt': '#\na b c\n'}, "two tokens a line, got 'a b c'"),
    ({'vocab.json': '{"a": 1}', 'merges.txt': '#\n'}, "two tokens a line, got 'none'"),
    ({'vocab.json': '{"a": 1}', 'merges.txt': '#\na b\n'}, r'must have <.startoftext.>, got none'),
])
def test_files_that_are_no_vocabulary(files, match, tmp_path):
  for name, content in files.items():
    (tmp_path / name).write_text(content)
  with pytest.raises(ValueError, match=match) as error:
    tokens.Tokenizer.load(tmp_path)
  assert str(error.value).startswith('tokens: ') and '\n' not in str(error.value)


def test_damaged_files(tmp_path):
  path = openai_file(tmp_path / 'x.txt.gz')
  data = path.read_bytes()
  for content in (data[:-20], b'\xff\xfe\x00', data[:10] + b'\0' * 50):
    path.write_bytes(content)
    with pytest.raises(ValueError, match='must be a list of merges, got .*; download it again'):
      tokens.Tokenizer.load(path)


def test_arguments_of_another_form(tokenizer):
  for texts in ('a text', [1]):
    with pytest.raises(ValueError, match='texts must be a list of texts, got .*; put one text in'):
      tokenizer.encode(texts)
  with pytest.raises(ValueError, match='context must be an integer of 2 or more, got 1; take that'):
    tokenizer.encode(['a'], 1)
  with pytest.raises(ValueError, match="unknown convention 'openal'; did you mean openai"):
    tokens.Tokenizer.load(VOCABULARY, 'openal')
