"""Discrete-time sampling: DDPM with fixed and learned variances, the variational bound."""
