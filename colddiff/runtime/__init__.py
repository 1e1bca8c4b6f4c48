"""Infrastructure: devices and hosts, files, errors, progress, signals, the compiler.

It may import nothing else of colddiff, and knows nothing of images or diffusion.
"""
