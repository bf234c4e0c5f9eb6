"""``python -m mae_dfer``: which commands there are."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence

from .cli import Parser, RawHelp, command
from .errors import UserError

COMMANDS = {
    "mae_dfer.train": "pre-train, fine-tune and score MAE-DFER on video files",
    "mae_dfer.predict": "class probabilities over time for videos, as a table and a CSV",
    "mae_dfer.data.prepare": "from an official data set, as it is downloaded, to a folder to train on, with a report",
    "mae_dfer.data.check": "name the videos of a list that cannot be read",
    "mae_dfer.data.demo": "draw the demo set: faces showing seven expressions",
    "mae_dfer_kernels": "which backends of the kernels can run on this machine, and why not the others",
}


@command
def main(argv: Sequence[str] | None = None) -> int:
    width = max(map(len, COMMANDS))
    lines = ["MAE-DFER: facial expressions from video. Its commands, each of which has --help:"]
    lines += [f"  python -m {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    parser = Parser(
        prog="python -m mae_dfer",
        usage="python -m COMMAND [options]",
        description="\n".join(lines),
        formatter_class=RawHelp,
    )
    parser.add_argument("command", nargs="*", help=argparse.SUPPRESS)
    words = parser.parse_known_args(argv)[0].command
    if words:
        near = difflib.get_close_matches(words[0], [name.rpartition(".")[2] for name in COMMANDS], n=1)
        named = [name for name in COMMANDS if near and name.endswith(near[0])]
        hint = f"did you mean python -m {named[0]}?" if named else "python -m mae_dfer lists the commands"
        raise UserError(f"commands are called by their modules; {hint}")
    parser.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())
