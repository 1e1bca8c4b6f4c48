"""`python -m colddiff` is the command `colddiff`."""

from colddiff.main import run

if __name__ == "__main__":
    run()
