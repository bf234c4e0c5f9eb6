"""python -m mae_dfer.data.check LIST [--root ROOT] [--report FILE]: list the files that cannot be read.

Prints one line per broken file, path and reason separated by a tab, and writes them to a report, below a line that says
what it is. Without broken files there is no report, and one of an earlier check is removed. Exit code 0 when all files
can be read, 1 when some cannot, 2 for a wrong call.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mae_dfer.cli import Parser, command
from mae_dfer.data.dataset import Failure
from mae_dfer.data.labels import read_classes
from mae_dfer.data.lists import read_list
from mae_dfer.data.probe import check_files
from mae_dfer.errors import UserError
from mae_dfer.files import check_writable, encodable, write_atomically

HEADER = "# Files that python -m mae_dfer.data.check could not read: path, tab, reason\n"


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
    check_writable(report, [args.list])
    if report.exists() and not _is_report(report):
        raise UserError(f"{report} exists and is no report of this command; remove it, or give another --report")
    names = args.list.with_name("classes.txt")
    classes = read_classes(names) if names.is_file() else None
    samples = read_list(args.list, root=args.root, labelled=False, classes=classes)
    failures = check_files(samples, workers=args.workers)
    what = _write_report(report, failures)
    for failure in failures:
        print(_line(failure))
    print(f"{len(failures)} of {len(samples)} files cannot be read{what}")
    return 1 if failures else 0


def _write_report(path: Path, failures: Sequence[Failure]) -> str:
    """Writes the report, or removes an earlier one where there is nothing to report; says which."""
    if failures:
        text = HEADER + "".join(f"{_line(failure)}\n" for failure in failures)
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return f"; report: {path}"
    if not path.exists():
        return ""
    os.unlink(os.path.realpath(path))
    return f"; removed the report of an earlier check, {path}"


def _line(failure: Failure) -> str:
    return encodable(f"{failure.path}\t{failure.reason}")


def _is_report(path: Path) -> bool:
    """Whether a file is a report of this command."""
    with path.open("rb") as file:
        return file.read(len(HEADER)) == HEADER.encode()


if __name__ == "__main__":
    sys.exit(main())
