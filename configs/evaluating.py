"""The fields of --mode=evaluate."""

import ml_collections
from ml_collections import config_dict


def get_group() -> ml_collections.ConfigDict:
  """Returns config.evaluate; docs/evaluation.md has the commands."""
  evaluate = ml_collections.ConfigDict()
  # What is measured: the workdir of a run, a folder, a zip or an npz file of images.
  evaluate.images = config_dict.placeholder(str)
  # What it is measured against: published statistics (.npz or .pkl), an image set as above, or
  # 'digits', the bundled ones in all inks. None: 'digits' for images of their size.
  evaluate.reference = config_dict.placeholder(str)
  # Inception's model directory, made by --mode=convert. None: the bundled classifier of digits.
  evaluate.network = config_dict.placeholder(str)
  # How images are resized and scaled for Inception, a key of evaluation.extractors.PIPELINES. None:
  # that of statistics of ours; 'edm' for statistics in EDM's layout, else 'tf1'.
  evaluate.pipeline = config_dict.placeholder(str)
  # Names, 'fid,is': fid, sfid, is, kid, precision_recall, density_coverage, lpips, clip.
  # None: of the first four, those that reference and network allow, and the last two where what
  # they need is given.
  evaluate.metrics = config_dict.placeholder(str)
  # LPIPS' model directory: image by image to those of the reference, which are of the same seeds.
  evaluate.lpips_network = config_dict.placeholder(str)
  # CLIP's model directory, a file with a line of text for each image, and CLIP's vocabulary: a
  # folder with vocab.json and merges.txt, or bpe_simple_vocab_16e6.txt.gz.
  evaluate.clip_network = config_dict.placeholder(str)
  evaluate.prompts = config_dict.placeholder(str)
  evaluate.tokenizer = config_dict.placeholder(str)
  # Number of images that there must be. None: that of the protocol, 50,000 for Inception and 30,000
  # for MS-COCO; any for digits.
  evaluate.count = config_dict.placeholder(int)
  # What departs from the protocol and is wanted all the same: 'count,labels', see
  # evaluation.recipe.FINDINGS.
  evaluate.accept = ''
  # File for the statistics of the images, to be a reference later: .npz. Without a reference
  # nothing else is done, and nothing is refused.
  evaluate.write_reference = config_dict.placeholder(str)
  evaluate.layout = 'edm'  # Of that file: 'edm' (mu, sigma), or 'adm' (for sFID, and with images).
  # Folder of all features, which may be shared with other runs; None: in the workdir.
  evaluate.features = config_dict.placeholder(str)
  return evaluate
