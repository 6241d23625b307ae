"""CLIP's tokenizer against the published ones on a small vocabulary, and bad files."""

import dataclasses
import gzip
import json
import shutil

import numpy as np
import pytest

from models import tokens
from tests import reference
from tests.models import latents

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


def test_merges_alone_give_the_published_vocabulary(tmp_path):
  files = latents.files()
  (tmp_path / 'vocab.json').write_text(json.dumps(files['vocab']))
  (tmp_path / 'merges.txt').write_text('\n'.join(['#version: 0.2', *files['merges'], '']))
  loaded = tokens.Tokenizer.load(tmp_path)
  made = tokens.Tokenizer.from_merges(files['merges'])
  assert (len(made.vocab), len(made.ranks)) == (584, 70)
  for field in ('vocab', 'ranks', 'pad', 'convention'):
    assert getattr(made, field) == getattr(loaded, field), field
  assert made.merges() == loaded.merges() == files['merges']


def test_merges_give_each_convention_its_filling(tokenizer):
  merges = tokenizer.merges()
  assert tokens.Tokenizer.from_merges(merges, convention='openai').pad == 0
  assert tokens.Tokenizer.from_merges(merges).pad == PUBLISHED['eos']
  filled = tokens.Tokenizer.from_merges(merges, pad=7, convention='openai')
  assert filled.encode(['a'], 8)[0, -1] == 7
  np.testing.assert_array_equal(
      tokens.Tokenizer.from_merges(merges, PUBLISHED['pad'], 'openai').encode(PUBLISHED['texts']),
      PUBLISHED['input_ids'])


@pytest.mark.parametrize('merges, options, match', [
    ('a b', {}, "merges must be a list of texts, got 'a b'; give one text for each"),
    (None, {}, "merges must be a list of texts, got 'None'; give one text for each"),
    (['a b', 'c'], {}, "merges must be of two tokens with a space between, got 'c'; take the lin"),
    ([['a', 'b']], {}, 'merges must be of two tokens with a space between, got .*; take the lines'),
    (['a b', 'ab c', 'a b'], {}, "merges must each give a new token, got 'ab' twice; take the"),
    (['a </w>'], {}, "merges must each give a new token, got 'a</w>' twice; take the lines"),
    (['a b'], {'pad': 515}, 'pad must be an id below 515, got 515; the end token is 514'),
    (['a b'], {'pad': True}, 'pad must be an id below 515, got True; the end token is 514'),
    (['a b'], {'convention': 'clip'}, "unknown convention 'clip'; known: openai, transformers"),
])
def test_merges_that_are_none(merges, options, match):
  with pytest.raises(ValueError, match=f'tokens: {match}'):
    tokens.Tokenizer.from_merges(merges, **options)


@pytest.mark.parametrize('changes, match', [
    ({'<my-cat>': 999}, "got '<my-cat>' with the id 999 and not None; take the vocabulary of a CL"),
    ({'!': 5}, "got '!' with the id 5 and not 0; take the vocabulary of a CLIP"),
])
def test_a_vocabulary_with_tokens_of_its_own_has_more_than_merges(tokenizer, changes, match):
  own = dataclasses.replace(tokenizer, vocab={**tokenizer.vocab, **changes})
  with pytest.raises(ValueError, match=f'the one that follows from its merges, {match}'):
    own.merges()


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
