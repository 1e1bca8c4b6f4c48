"""Scores as tables, plots and pages; restored images as pictures.

This package may import `evaluation` and the packages below it. It measures nothing.
"""
