"""Training: batches and examples, the train step, and the loop that logs, draws, scores and saves.

This package may import every module but `main` and `benchmark`.
"""
