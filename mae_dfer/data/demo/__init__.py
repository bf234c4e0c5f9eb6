"""A set of drawn faces that shows seven expressions: enough to train, test and check a model without a download.

These are drawings with a convention, not photographs and not psychology. A person is a random combination of
proportions, colours, hair, beard, glasses and age; a clip shows one of seven expressions unfolding, moved by
facial action units, under random light, head motion, blinks, gaze and talking that have nothing to do with the
class. The people of ``test`` are not in ``train``. The classes are defined so:

* ``neutral``: rest, with talking and a small twitch. ``happy``: a smile with raised cheeks.
  ``sad``: inner brows up, corners of the mouth down. A frame at the height of these says what they are.
* ``surprise`` and ``fear``: the same pose (brows up, eyes wide, mouth open). Surprise comes abruptly and fades
  slowly; fear builds up slowly and is released abruptly.
* ``angry`` and ``disgust``: the same two parts, lowered brows and a raised upper lip. Angry: the brows lead in
  and out, the lip follows. Disgust: the lip leads, the brows follow.

Within each of the last two pairs one class is the other played backwards, so the frames of a clip, taken
without their order, are distributed alike and only the order tells the classes apart: ``MOTION_DEFINED`` names
the four. (A frame together with its place in the clip does hint at the order: lowered brows early on mean that
the brows led.)
"""

from __future__ import annotations

from .expression import CLASSES
from .store import VERSION, default_folder, ensure_demo

MOTION_DEFINED = ("angry", "surprise", "disgust", "fear")

__all__ = ["CLASSES", "MOTION_DEFINED", "VERSION", "default_folder", "ensure_demo"]
