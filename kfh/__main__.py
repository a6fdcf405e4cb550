"""`python -m kfh` is `kfh`."""

from __future__ import annotations

from kfh.cli import main

if __name__ == "__main__":
    main()
