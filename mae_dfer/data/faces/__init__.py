"""Faces in videos: found, followed, and cut out as square clips.

    from mae_dfer.data import open_video
    from mae_dfer.data.faces import FaceDetector, find_tracks, main_track, write_crops

    detector = FaceDetector()
    with open_video("interview.mp4") as video:
        track = main_track(find_tracks(video, detector))
        if track is not None:
            write_crops(video, track, "face.mp4")

A video is read twice, first to find the faces, then to cut one out, and never held in memory.

Boxes are (left, top, right, bottom) in pixels of the frame, whose corner is (0, 0); they may reach beyond it.
"""

from mae_dfer.data.faces.crops import crop, write_crops, write_frames
from mae_dfer.data.faces.detector import FaceDetector, Faces, largest_face_share
from mae_dfer.data.faces.tracks import Track, find_tracks, main_track

__all__ = [
    "FaceDetector",
    "Faces",
    "Track",
    "crop",
    "find_tracks",
    "largest_face_share",
    "main_track",
    "write_crops",
    "write_frames",
]
