"""Scores of restored and generated images, and the feature spaces that distances are measured in.

Allowed imports: `inference` and the layers below it (`pyproject.toml`). Tables, plots and pictures
are made in `reporting`.
"""
