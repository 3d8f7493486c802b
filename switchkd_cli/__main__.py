"""`python -m switchkd_cli`: the same as `switchkd`."""

import sys

from switchkd_cli.cli import main

if __name__ == "__main__":
    sys.argv[0] = "switchkd"  # what help texts and run.json call the program
    main()
