"""Samplers, which compute x0 from xT (Algorithms 1 and 2, DDIM), and priors, which draw xT.

Allowed imports: `degradations`, `images` and `runtime.errors`. It uses no config, data or files.
"""
