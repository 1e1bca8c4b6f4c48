"""A trained run at work: `run.sample(params, xT)`, and images from nothing, one for each seed.

May import `experiment` and what is below it. How good the images are is for `evaluation` to say.
"""
