"""Videos to batches of clips: lists, decoding, sampling, masks, augmentation, loading."""

from mae_dfer.data.dataset import ClipConfig, ClipDataset, Failure, collate
from mae_dfer.data.lists import DatasetFolder, Sample, open_dataset, read_classes, read_list
from mae_dfer.data.loader import EpochSampler, make_loader
from mae_dfer.data.masks import random_mask, region_window_tube_mask, tube_mask
from mae_dfer.data.probe import check_files
from mae_dfer.data.video import Video, VideoError, open_video

__all__ = [
    "ClipConfig",
    "ClipDataset",
    "DatasetFolder",
    "EpochSampler",
    "Failure",
    "Sample",
    "Video",
    "VideoError",
    "check_files",
    "collate",
    "make_loader",
    "open_dataset",
    "open_video",
    "random_mask",
    "read_classes",
    "read_list",
    "region_window_tube_mask",
    "tube_mask",
]
