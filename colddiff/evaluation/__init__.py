"""Scores of restored and generated images, and the feature spaces that distances are measured in.

May import `inference` and the packages below it. Tables, plots and pictures live in `reporting`.
"""
