"""`python -m kfh` is `kfh`."""

from kfh.cli import main

if __name__ == "__main__":
    main()
