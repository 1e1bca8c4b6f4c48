"""From a config to an Experiment, and what is kept of one: the training state and its checkpoints.

May import `data` and what is below it. Only this wing imports orbax.
"""
