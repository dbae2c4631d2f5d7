"""`python -m ivlens` is the same as `ivlens`."""

import sys

from ivlens.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
