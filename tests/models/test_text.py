"""The text encoder of Stable Diffusion against the reference numbers, and bad input."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from convert import rules, text as convert_text
from models import directory, text, tokens
from tests import recipe, reference
from tests.models import latents

TOKENIZER = json.loads((reference.GOLDEN / 'ldm' / 'tokenizer.json').read_text())


@functools.cache
def published():
  """(TextEncoder, case of the manifest, its arrays): that of the small Stable Diffusion."""
  manifest, arrays = reference.load('ldm')
  case = next(case for case in manifest['cases'] if case['id'] == 'sd')
  start = 'cond_stage_model.transformer.'
  weights = recipe.weights([entry for entry in recipe.load('ldm/recipes.json.gz')['sd']
                            if entry[0].startswith(start)], case['weight_tag'])
  weights = {name.removeprefix(start): array for name, array in weights.items()}
  settings = convert_text.describe(weights, case['clip_config'])
  params = convert_text.fuse(rules.place(convert_text.key_rules(settings), weights,
                                         convert_text.shapes(settings)))
  tokenizer = tokens.Tokenizer.from_merges(latents.files()['merges'])
  encoder = text.TextEncoder({}, params, text.build(settings), tokenizer, sha256='')
  return encoder, case, arrays['sd']


@pytest.fixture(scope='module')
def tiny():
  """The encoder of a tiny model."""
  settings = latents.TEXT['network']['settings']
  return text.TextEncoder(latents.TEXT, latents.params()['text'], text.build(settings),
                          tokens.Tokenizer.from_merges(latents.MERGES), sha256='')


def test_ids_are_those_of_the_published_tokenizer():
  encoder, case, arrays = published()
  assert (len(case['prompts']), len(TOKENIZER['texts'])) == (5, 16)
  np.testing.assert_array_equal(encoder.tokenizer.encode(case['prompts']), arrays['input_ids'])
  np.testing.assert_array_equal(encoder.tokenizer.encode(TOKENIZER['texts']),
                                TOKENIZER['input_ids_fast'])


def test_special_tokens_are_those_of_the_vocabulary():
  # A published config tells the ids of another model.
  told, own = latents.files()['text_encoder'], latents.files()['vocab']
  ids = published()[0].tokenizer.encode([''])[0]
  assert (ids[0], {*ids[1:]}) == (own['<|startoftext|>'], {own['<|endoftext|>']})
  assert told['bos_token_id'] not in ids and told['eos_token_id'] not in ids


def test_features_in_64_bit(x64):
  encoder, _, arrays = published()
  params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), encoder.params)
  answer = jax.jit(lambda ids: encoder.module.apply({'params': params}, ids))(arrays['input_ids'])
  assert answer.last.dtype == np.float64 and arrays['context64'].shape == (5, 77, 24)
  np.testing.assert_allclose(answer.last, arrays['context64'], rtol=1e-10, atol=1e-11)
  states = answer.hidden_states[:, :2, :12]
  assert states.shape == arrays['text_hidden_states64'].shape == (3, 2, 12, 24)
  np.testing.assert_allclose(states, arrays['text_hidden_states64'], rtol=1e-10, atol=1e-11)


def test_features_in_32_bit():
  encoder, case, arrays = published()
  answer = encoder.encode(case['prompts'])
  assert answer.dtype == np.float32 and answer.shape == (5, 77, 24)
  # Two blocks of some ten sums each of at most 96 terms, normalized: values of 3 are known to a few
  # dozen times 2^-24.
  assert abs(answer - arrays['context64']).max() < 1e-5


def test_a_long_text_keeps_its_start_and_the_end_token():
  encoder, case, _ = published()
  long, end = case['prompts'][-1], TOKENIZER['eos']
  ids = encoder.tokenizer.encode([long, f'{long} and more'])
  assert (ids[0] == ids[1]).all() and ids[0, -1] == end and end not in ids[0, :-1]


def test_features_of_a_text_depend_on_it_alone(tiny):
  alone, = tiny.encode(['a cat'])
  among = tiny.encode(['dog', 'a cat', 'cat', 'a cat'])
  for i in (1, 3):
    np.testing.assert_array_equal(among[i], alone)
  assert abs(among[2] - alone).max() > 0.01
  assert tiny.encode([]).shape == (0, 8, 12)


def test_half_precision_parameters_give_float32(tiny):
  half = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), tiny.params)
  answer = dataclasses.replace(tiny, params=half).encode(['a cat'])
  rounded = jax.tree.map(lambda leaf: leaf.astype(np.float32), half)
  expected = dataclasses.replace(tiny, params=rounded).encode(['a cat'])
  assert answer.dtype == np.float32
  np.testing.assert_allclose(answer, expected, atol=1e-6)  # Of the order of sums alone.


def test_numbers_of_texts_become_their_features(x64):
  def evaluate(params, x, sigma, features, times):
    return times * (params * x[:, None] * sigma + features)
  apply = text.numbered(evaluate)
  assert apply is text.numbered(evaluate)
  x, table = np.float64([1, 2, 3, 4]), np.arange(12, dtype=np.float32).reshape(3, 2, 2)
  def rows(labels):
    answer = apply({'network': np.float64(0), 'features': table}, x[:, None], np.float64(1), labels,
                   times=np.float64(2))
    assert answer.dtype == np.float64
    return np.asarray(answer) / 2
  np.testing.assert_array_equal(rows(np.int32([1, -1, 0, -9])), table[[2, 0, 1, 0]])
  np.testing.assert_array_equal(rows(None), table[[0, 0, 0, 0]])
  wrong = rows(np.int32([0, 2, 1, 100]))
  np.testing.assert_array_equal(np.isnan(wrong).all((1, 2)), [False, True, False, True])


def test_texts_that_are_no_list(tiny):
  for texts in ('a cat', [1]):
    with pytest.raises(ValueError, match='tokens: texts must be a list of texts, got .*; put one'):
      tiny.encode(texts)


def test_what_is_saved_is_loaded(tiny, tmp_path):
  directory.save(tmp_path / 'text', latents.TEXT, tiny.params, 'a test')
  loaded = text.load_text_encoder(tmp_path / 'text')
  jax.tree.map(np.testing.assert_array_equal, loaded.params, tiny.params)
  assert loaded.module == tiny.module and loaded.sha256 == directory.digest(tiny.params)
  for field in ('vocab', 'ranks', 'pad', 'convention'):
    assert getattr(loaded.tokenizer, field) == getattr(tiny.tokenizer, field)
  np.testing.assert_array_equal(loaded.encode(['a cat']), tiny.encode(['a cat']))


@pytest.mark.parametrize('fields, match', [
    ({'kind': 'features'}, 'load: model must be a text_encoder, got the features .*text; choose'),
    ({'network': 'clip_text'}, "network of the text_encoder must be the name 'clip_text' and set"),
    ({'network': {'name': 'clip', 'settings': {}}}, "got {'name': 'clip', 'settings': {}}; make"),
    ({'merges': 'a t</w>'}, "tokens: merges must be a list of texts, got 'a t</w>'; give one"),
    ({'merges': latents.MERGES[:2]}, 'load: vocab of the text encoder must be 516, 514 and its 2 '
                                     'merges, got 517; give the tokenizer that it was trained'),
    ({'pad': 600}, 'tokens: pad must be an id below 517, got 600; the end token is 516'),
    ({'convention': 'mine'}, "tokens: unknown convention 'mine'; known: openai, transformers"),
])
def test_config_that_does_not_fit(tiny, tmp_path, fields, match):
  directory.save(tmp_path / 'text', latents.TEXT, tiny.params, 'a test')
  path = tmp_path / 'text' / 'config.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
  with pytest.raises(ValueError, match=match) as error:
    text.load_text_encoder(tmp_path / 'text')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('settings, match', [
    ({'layer': 2}, "clip_text: unknown setting 'layer'; did you mean layers"),
    ({'layers': 0}, 'clip_text: layers must be an integer of 1 or more, got 0; see'),
    ({'layers': 1.5}, 'clip_text: layers must be an integer of 1 or more, got 1.5; see'),
    ({'activation': 'relu'}, "clip_text: unknown activation 'relu'"),
    ({'heads': 5}, 'clip_text: width must divide into its heads, .* got 12, 5 heads and 8; choose'),
    ({'context': 1}, 'and context hold start and end, got 12, 2 heads and 1; choose'),
])
def test_settings_out_of_range(settings, match):
  with pytest.raises(ValueError, match=match):
    text.build({**latents.TEXT['network']['settings'], **settings})
  with pytest.raises(ValueError, match='clip_text: settings layers, heads, context, vocab, mlp mu'):
    text.build({'width': 12})
