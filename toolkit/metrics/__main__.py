"""Writes the rules and the dashboard below a folder: python -m toolkit.metrics deploy."""

import sys
from pathlib import Path

from toolkit.metrics.rendering import write

if __name__ == "__main__":
    write(Path(sys.argv[1]))
