"""``python -m phiquant`` is the command ``phiquant``."""

from phiquant.cli import main

if __name__ == "__main__":
    main()
