"""The walk from xT back to x0 (Algorithms 1 and 2, DDIM), and priors: where xT comes from.

May import `degradations`, `images` and `runtime.errors`: no config, no data, no files.
"""
