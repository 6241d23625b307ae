"""Models: denoisers with the levels they know, and where all conventions of time end."""

from models import amed_predictor, denoisers, digits, directory, mixture, networks
from models.feature_networks import FEATURE_NETWORKS, FeatureNetwork, load_features
from models.model import (
    BUNDLED,
    BUNDLED_CLASSIFIERS,
    Classifier,
    Model,
    load,
    load_classifier,
)

__all__ = ['BUNDLED', 'BUNDLED_CLASSIFIERS', 'FEATURE_NETWORKS', 'Classifier', 'FeatureNetwork',
           'Model', 'amed_predictor', 'denoisers', 'digits', 'directory', 'load', 'load_classifier',
           'load_features', 'mixture', 'networks']
