"""Inference with a trained run: restore images from xT, or generate one image for each seed.

Allowed imports: `experiment` and the layers below it (`pyproject.toml`). `evaluation` scores the
images.
"""
