"""Training: batches and examples, the train step, and the loop that logs, draws, scores and saves.

Allowed imports: every module but `main` and `benchmark`.
"""
