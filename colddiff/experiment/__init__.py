"""The Experiment that a config describes, its training state, and its checkpoints.

It may import `data` and the packages below it. Only this package imports orbax.
"""
