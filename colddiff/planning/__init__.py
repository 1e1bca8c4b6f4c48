"""What a config needs on hardware that is not at hand: `--mode=plan`.

chips.py holds the figures of chips and makes device descriptions, program.py reads compiled
programs, and plan.py compiles a config's programs and makes the table.
"""
