"""Linear measurements of images: operators, and samples that agree with what was measured."""
