"""`python -m toolkit.bench`."""

from toolkit.bench.cli import main

if __name__ == "__main__":
    main()
