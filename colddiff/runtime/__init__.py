"""Infrastructure: devices and hosts, files, errors, progress, signals, the compiler.

Allowed imports: nothing else of colddiff. Nothing here is specific to diffusion.
"""
