"""SEEDS and exponential Runge-Kutta solvers: stages with noise of one Brownian path."""
