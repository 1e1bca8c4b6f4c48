"""Sources of images, and the order in which training sees them.

Allowed imports: `runtime`. Decoding and caching are done here, augmentation in the train step.
"""
