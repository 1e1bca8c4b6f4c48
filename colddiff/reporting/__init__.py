"""Scores as tables, plots and pages; restored images as pictures.

Allowed imports: `evaluation` and the layers below it (`pyproject.toml`). It measures nothing.
"""
