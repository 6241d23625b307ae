"""Models: denoisers with the levels they know, and where all conventions of time end."""

from models import amed_predictor, denoisers, digits, directory, mixture, networks, tokens
from models.feature_networks import FEATURE_NETWORKS, FeatureNetwork, load_features
from models.first_stage import FirstStage, load_first_stage
from models.model import (
    BUNDLED,
    BUNDLED_CLASSIFIERS,
    Classifier,
    Model,
    load,
    load_classifier,
)
from models.text import TextEncoder, load_text_encoder

__all__ = ['BUNDLED', 'BUNDLED_CLASSIFIERS', 'FEATURE_NETWORKS', 'Classifier', 'FeatureNetwork',
           'FirstStage', 'Model', 'TextEncoder', 'amed_predictor', 'denoisers', 'digits',
           'directory', 'load', 'load_classifier', 'load_features', 'load_first_stage',
           'load_text_encoder', 'mixture', 'networks', 'tokens']
