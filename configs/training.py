"""The fields of --mode=train."""

import ml_collections
from ml_collections import config_dict


def get_group() -> ml_collections.ConfigDict:
  """Returns config.train; the defaults train the bundled denoiser, see configs/digits.py."""
  train = ml_collections.ConfigDict()
  train.kind = 'denoiser'  # What is trained: 'denoiser', or 'classifier' for log p(y | x; sigma).
  # Images: 'digits', the bundled set, or a .npz file with arr_0 (uint8, NHWC, square) and, for a
  # model with classes, arr_1 (integers from 0): what output.format='npz' writes.
  train.data = 'digits'
  train.held_out = 8  # Every 8th image is kept out of training, to measure on; 0: none.

  # Network: a key of models.networks.NETWORKS, and the attributes of that module. None is the
  # module's own default; the resolution, channels and classes are those of the data.
  train.network = ml_collections.ConfigDict()
  train.network.name = 'song_unet'
  train.network.model_channels = 32  # Channels at multiplier 1.
  train.network.channel_mult = (1, 2)  # Multiplier of each level; each halves the side.
  train.network.num_blocks = 2  # Residual blocks of each level.
  train.network.dropout = 0.05  # In training.
  train.network.attn_resolutions = config_dict.placeholder(tuple)  # Sides with attention.
  train.network.channel_mult_emb = config_dict.placeholder(int)  # Size of the embedding.
  train.network.embedding_type = config_dict.placeholder(str)  # 'positional' or 'fourier'.
  train.network.channel_mult_noise = config_dict.placeholder(int)  # Size of the noise embedding.
  train.network.encoder_type = config_dict.placeholder(str)  # 'standard', 'residual' or 'skip'.
  train.network.decoder_type = config_dict.placeholder(str)  # 'standard' or 'skip'.
  train.network.resample_filter = config_dict.placeholder(tuple)  # Taps, (1, 1) or (1, 3, 3, 1).

  # Noise: ln sigma is normal, EDM's Eq. 5; weight and preconditioning are EDM's, Table 1.
  train.P_mean = -1.2  # Mean of ln sigma.
  train.P_std = 1.2  # Standard deviation of ln sigma.
  train.sigma_data = 0.5  # Standard deviation of the data, for weight and preconditioning.
  # Highest level: None for all. A number trains below it only, and the model is one for that range:
  # the early-stopped diffusion of ES-DDPM, for runs that start at an inner level.
  train.sigma_max = config_dict.placeholder(float)
  train.label_dropout = 0.1  # Share of labels left out, so that the model also knows no class.

  train.seed = 0  # Of everything random; steps are reproducible one by one.
  train.steps = 3000  # Optimizer steps.
  train.batch_size = 128  # Images of a step.
  train.learning_rate = 2e-3  # Of Adam, after the warm-up.
  train.warmup = 200  # Steps of linear warm-up.
  train.decay = 'cosine'  # After it: 'cosine' to 0 at the last step, or 'constant'.
  train.ema_half_life = 30_000  # Of the average of parameters, in images; less at the start.
  train.log_every = 100  # Steps between lines of metrics.jsonl.
  train.checkpoint_every = 500  # Steps between checkpoints; a killed run goes on from the last.
  train.dtype = 'float32'  # Precision of the saved parameters; 'float16' halves the file.
  return train
