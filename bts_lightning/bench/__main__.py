"""`python -m bts_lightning.bench`: the same, where the package lies in a folder uninstalled."""

import sys

from bts_lightning.bench import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
