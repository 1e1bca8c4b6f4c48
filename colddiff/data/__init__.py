"""Sources of images, and the order in which training sees them.

It may import `runtime`. Decoding and caching live here; augmentation is part of the train step.
"""
