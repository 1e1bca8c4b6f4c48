"""Weights in and out: other programs' files become a workdir, and a run becomes files for others.

Allowed imports: `inference` and the layers below it (`pyproject.toml`). The formats and the names
of weights are in `experiment/weights.py` and `experiment/authors.py`.
"""
