"""Samplers, which compute x0 from xT (Algorithms 1 and 2, DDIM), and priors, which draw xT.

Data consistency makes restorations agree with xT. Allowed imports: `degradations`, `images` and
`runtime.errors`. The package uses no config, data or files.
"""
