"""``python -m mae_dfer.data.demo``: draws the demo set."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mae_dfer.cli import Parser, command
from mae_dfer.errors import UserError
from mae_dfer.files import check_writable

from . import default_folder, ensure_demo
from .contact_sheet import check_format, save_contact_sheet


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m mae_dfer.data.demo", description="Draws the demo set: faces showing seven expressions."
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"folder of the set (default: {default_folder()})")
    parser.add_argument(
        "--contact-sheet", type=Path, metavar="FILE", help="also save an overview picture (.png or .jpg)"
    )
    parser.add_argument("--force", action="store_true", help="replace the picture where there is one")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N clips of each split, for a quick look")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    options = parser.parse_args(argv)
    if options.contact_sheet is not None:
        check_format(options.contact_sheet)
        check_writable(options.contact_sheet)
        if options.contact_sheet.exists() and not options.force:
            raise UserError(f"{options.contact_sheet} exists; --force replaces it")
    folder = ensure_demo(options.output, workers=options.workers, limit=options.limit)
    print(f"demo set: {folder}")
    if options.contact_sheet is not None:
        save_contact_sheet(options.contact_sheet)
        print(f"contact sheet: {options.contact_sheet}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
