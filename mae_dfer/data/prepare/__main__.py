"""``python -m mae_dfer.data.prepare``: from a downloaded data set to the folder that training takes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from mae_dfer.cli import Parser, RawHelp, command
from mae_dfer.data.faces import FaceDetector
from mae_dfer.data.prepare.crop import FORMATS, Cropping, crop_faces, save_faults
from mae_dfer.data.prepare.crop import STORE as CROPS
from mae_dfer.data.prepare.face_shares import sample_size
from mae_dfer.data.prepare.findings import find_faults
from mae_dfer.data.prepare.inspection import find_duplicates, inspect_clips
from mae_dfer.data.prepare.layout import INSPECTIONS, Layout
from mae_dfer.data.prepare.official import READERS
from mae_dfer.data.prepare.report import print_report, verdict, write_page
from mae_dfer.data.prepare.store import Store
from mae_dfer.data.prepare.tables import check_output, write_tables
from mae_dfer.errors import UserError
from mae_dfer.training.progress import counting_bar

DESCRIPTION = """\
Prepares an official data set for training: reads its lists, looks into every clip, and writes class names, the lists of
each fold, a table of the clips and a report. The data set itself is only read. Run again after a kill or a change, it
reads what is new."""

EXAMPLES = """\
examples:
  python -m mae_dfer.data.prepare dfew --root DFEW --clips clip_224x224 --output prepared/dfew
  python -m mae_dfer.data.prepare ravdess --root RAVDESS --crop-faces --output prepared/ravdess
  python -m mae_dfer.train --recipe dfew --data prepared/dfew --fold 1 --init-from voxceleb2.pth
"""


def _parser() -> Parser:
    parser = Parser(
        prog="python -m mae_dfer.data.prepare", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=RawHelp
    )
    parser.add_argument("set", metavar="SET", choices=sorted(READERS), help=", ".join(sorted(READERS)))
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="the folder of the downloaded set")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the folder to write")
    parser.add_argument("--clips", metavar="NAME", help="which form of the clips to take, where the set has several")
    faces = parser.add_argument_group("for sets that come as whole frames")
    faces.add_argument(
        "--crop-faces", action="store_true", help="find the face in each clip, follow it, and cut it out (256 pixels)"
    )
    faces.add_argument(
        "--format", choices=FORMATS, help="crops as mp4 files, or as folders of frames (default: mp4)"
    )
    faces.add_argument(
        "--face-model", type=Path, metavar="FILE", help="a YuNet detector in ONNX (default: this package's own)"
    )
    cores = os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=cores, metavar="N", help="processes (default: one per core)")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    if options.workers < 1:
        raise UserError(f"--workers must be 1 or more, got {options.workers}")
    root, output = options.root.expanduser(), options.output.expanduser()
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give that of the downloaded set as --root")
    if output.resolve() == root.resolve():
        raise UserError(f"--output {output} is the data set itself; give another folder, in which lists are written")
    if not options.crop_faces and (options.format or options.face_model):
        raise UserError(f"{'--format' if options.format else '--face-model'} is for --crop-faces; give that, too")
    cropping = None
    if options.crop_faces:
        cropping = Cropping(options.format or "mp4", options.face_model and options.face_model.expanduser())
        FaceDetector(cropping.face_model)  # now: the clips take hours
    layout = READERS[options.set](root, options.clips)
    check_output(layout, output)
    output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / ".lock", timeout=0):
            return prepare(layout, output, options.workers, cropping)
    except Timeout:
        raise UserError(f"{output} is being written by another process; wait for its end") from None


def prepare(layout: Layout, output: Path, workers: int, cropping: Cropping | None = None) -> int:
    """Writes the prepared folder and its report; returns 0 where the set is fit for training, else 1.

    Args:
        cropping: how to cut out faces; None takes the frames as they are.
    """
    with Store(output / INSPECTIONS) as store:
        inspect(layout, store, workers)
        if cropping is None:
            return report(layout, store, output, workers)
        with counting_bar("crop faces", store.count()) as advance:
            cropped = crop_faces(layout, store, output, cropping, workers, advance)
        with Store(output / CROPS) as crops:
            crops.set_root(cropped.root)
            save_faults(store, crops)
            inspect(cropped, crops, workers)
            return report(cropped, crops, output, workers)


def inspect(layout: Layout, store: Store, workers: int) -> None:
    """Lists the clips of ``layout``, and looks into those that are new or have changed."""
    count = store.list_clips(layout.entries)
    if not count:
        raise UserError(f"no clip of {layout.set} was found below {layout.root}")
    with counting_bar("inspect", count) as advance:
        inspect_clips(layout.root, store, workers, advance)


def report(layout: Layout, store: Store, output: Path, workers: int) -> int:
    """Writes lists, tables and the report on clips that were inspected."""
    find_duplicates(layout.root, store, workers)
    with counting_bar("look for faces", sample_size(store)) as advance:
        findings = find_faults(layout, store, workers, advance)
    write_tables(layout, store, output, verdict(findings))
    write_page(layout, store, findings, output / "report.html", workers)
    print_report(layout, store, findings, output)
    return 1 if any(finding.is_fault for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
