"""Scores as tables, plots and pages; restored images as pictures.

May import `evaluation` and what is below it. Nothing is measured here.
"""
