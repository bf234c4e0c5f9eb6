"""Videos to batches of clips: lists, decoding, sampling, masks, augmentation, loading."""

from mae_dfer.data.dataset import ClipConfig, ClipDataset, Failure, collate
from mae_dfer.data.labels import read_classes
from mae_dfer.data.lists import DatasetFolder, Sample, open_dataset, read_list
from mae_dfer.data.loader import EpochSampler, make_loader
from mae_dfer.data.masks import random_mask, region_window_tube_mask, tube_mask
from mae_dfer.data.probe import check_containers, check_files
from mae_dfer.data.video import Video, VideoError, VideoWarning, open_video

__all__ = [
    "ClipConfig",
    "ClipDataset",
    "DatasetFolder",
    "EpochSampler",
    "Failure",
    "Sample",
    "Video",
    "VideoError",
    "VideoWarning",
    "check_containers",
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
