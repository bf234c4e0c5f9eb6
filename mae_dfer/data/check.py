"""python -m mae_dfer.data.check LIST [--root ROOT] [--report FILE]: list the files that cannot be read.

Prints and writes one line per broken file, path and reason separated by a tab. Exit code 0 when all files
can be read, 1 when some cannot, 2 for a wrong call.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mae_dfer.cli import Parser, command
from mae_dfer.data.labels import read_classes
from mae_dfer.data.lists import read_list
from mae_dfer.data.probe import check_files
from mae_dfer.errors import UserError
from mae_dfer.files import check_writable, write_atomically


def _parser() -> Parser:
    parser = Parser(prog="python -m mae_dfer.data.check", description="Find broken videos of a list.")
    parser.add_argument("list", type=Path, help="text file with 'path label' lines (labels may be missing)")
    parser.add_argument(
        "--root",
        "--data-root",
        type=Path,
        metavar="FOLDER",
        help="folder of relative paths (default: the folder of the list)",
    )
    parser.add_argument("--report", type=Path, help="where to write broken files (default: LIST.broken.txt)")
    parser.add_argument("--workers", type=int, default=4, help="files checked at a time (default: 4)")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    report = args.report or args.list.with_name(args.list.name + ".broken.txt")
    if args.workers < 1:
        raise UserError(f"--workers must be 1 or more, got {args.workers}")
    check_writable(report)
    names = args.list.with_name("classes.txt")
    classes = read_classes(names) if names.is_file() else None
    samples = read_list(args.list, root=args.root, labelled=False, classes=classes)
    failures = check_files(samples, workers=args.workers)
    text = "".join(f"{f.path}\t{f.reason}\n" for f in failures)
    write_atomically(report, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    for failure in failures:
        print(f"{failure.path}\t{failure.reason}")
    print(f"{len(failures)} of {len(samples)} files cannot be read; report: {report}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
