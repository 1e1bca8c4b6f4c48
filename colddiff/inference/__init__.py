"""Inference with a trained run: restore images or files, or generate one image for each seed.

Allowed imports: `experiment` and the layers below it (`pyproject.toml`). `evaluation` scores the
images.
"""
