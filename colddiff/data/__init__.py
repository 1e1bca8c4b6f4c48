"""Where images come from, and the order in which training sees them.

May import `runtime`. Decoding and caching live here; augmentation is part of the train step.
"""
