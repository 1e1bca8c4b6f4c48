"""Scores of restored and generated images, and the feature spaces that distances are measured in.

May import `inference` and what is below it. Tables, plots and pictures live in `reporting`.
"""
