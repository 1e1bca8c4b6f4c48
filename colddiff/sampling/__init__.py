"""Samplers, which walk from xT to x0 (Algorithms 1 and 2, DDIM), and priors, which draw xT.

This package may import `degradations`, `images` and `runtime.errors`. It uses no config, data or
files.
"""
