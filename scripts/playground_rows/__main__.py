"""Write the data files that recipes of recipes/playground/ name, those that are not there yet:

    python -m scripts.playground_rows recipes/playground/language.yaml [more.yaml]

The name of a file's folder says what is in it: runs/rows/drills-24000x10-105 has drills about 24,000 pictures, ten turns
each, drawn by seed 105. Names are relative to the current folder, as they are for `switchkd pretrain`.
"""

import argparse
import sys
from pathlib import Path

from scripts.playground_rows.named_rows import named_rows
from switchkd_cli.errors import UserError, print_in_any_encoding, system_errors


def main() -> int:
    print_in_any_encoding()
    parser = argparse.ArgumentParser(
        prog="python -m scripts.playground_rows",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipes", nargs="+", type=Path, metavar="RECIPE", help="a recipe's file")
    try:
        with system_errors():
            for rows in named_rows(parser.parse_args().recipes):
                print(rows.write(), flush=True)
    except UserError as error:
        print(*error.lines, sep="\n", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
