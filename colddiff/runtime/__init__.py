"""What the program stands on: devices and hosts, files, errors, progress, signals, the compiler.

May import nothing else of colddiff. Nothing here knows of images or diffusion.
"""
