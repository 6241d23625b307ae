"""DPM-Solver with adaptive steps."""
