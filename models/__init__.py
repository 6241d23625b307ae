"""Models: denoisers with the levels they know, and where all conventions of time end."""

from models import digits, mixture
from models.model import BUNDLED, Model, load

__all__ = ['BUNDLED', 'Model', 'digits', 'load', 'mixture']
