"""The train step, the examples it is fed, and the loop that logs, draws, scores and saves.

May import everything but `main` and `benchmark`.
"""
