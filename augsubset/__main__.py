"""``python -m augsubset``: the command ``augsubset``."""

from augsubset.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
