"""The fields of --mode=convert."""

import ml_collections
from ml_collections import config_dict


def get_group() -> ml_collections.ConfigDict:
  """Returns config.convert; --workdir names the directory of the model or predictor to be made."""
  convert = ml_collections.ConfigDict()
  # The checkpoint: a file of EDM or SFD (.pkl), of guided-diffusion or consistency models (.pt), of
  # latent diffusion or Stable Diffusion (.ckpt, .safetensors, or a folder of diffusers), of a
  # predictor of AMED (.pkl), or of a network of features: an Inception of FID (.pth, .pt, .pkl),
  # LPIPS (vgg.pth with vgg16-397923af.pth beside it), a CLIP (.pt, .safetensors).
  convert.source = config_dict.placeholder(str)
  convert.family = config_dict.placeholder(str)  # One of convert.FAMILIES; None: recognized.
  # A file of guided-diffusion, consistency models or latent diffusion holds tensors alone. Which
  # published one it is, a key of convert.published.KNOWN or ALIASES; None: the one whose name the
  # file bears, or, of latent diffusion, the one whose shapes it has.
  convert.published = config_dict.placeholder(str)
  # Or, for a network of the user's own, a JSON file with the flags it was trained with, such as
  # {"image_size": 64, "num_channels": 192}, or with the arguments of UNetModel; of latent diffusion
  # the YAML file of the training. For a CLIP that is none of OpenAI's: the config.json or
  # open_clip_config.json beside it.
  convert.architecture = config_dict.placeholder(str)
  # The vocabulary for the texts of a Stable Diffusion in one file, which has none: a folder with
  # vocab.json and merges.txt, or OpenAI's bpe_simple_vocab_16e6.txt.gz.
  convert.tokenizer = config_dict.placeholder(str)
  # Weights of latent diffusion's U-Net: 'auto', averaged ones where there are any, as there must be
  # unless its YAML file has use_ema false; 'require', those or nothing; 'ignore', as trained.
  convert.ema = 'auto'
  # Side in pixels of a denoiser's, classifier's or predictor's images, of pictures where it makes
  # latents, to be told early of a wrong file; None: any.
  convert.resolution = config_dict.placeholder(int)
  convert.sha256 = config_dict.placeholder(str)  # That the file must have, in hex; None: any.
  convert.dtype = 'float32'  # Of the parameters on disk: 'float32', 'float16' or 'bfloat16'.
  convert.self_check = True  # Evaluate the network once before it is written.
  return convert
