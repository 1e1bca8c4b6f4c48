"""The Experiment that a config describes, its training state, and its checkpoints.

Allowed imports: `data` and the layers below it (`pyproject.toml`). Only this package imports orbax.
"""
