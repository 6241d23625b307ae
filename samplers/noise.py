"""Sources of noise: per seed and row, along one Brownian path, or of two or three points."""
