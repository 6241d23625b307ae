"""k-diffusion's stochastic solvers."""
