"""Inference with a trained run: restore images from xT, or generate one image for each seed.

May import `experiment` and the packages below it. `evaluation` scores the images.
"""
