"""Scores of a classifier: UAR and WAR, as facial expression work reports them."""

from __future__ import annotations

from typing import Any

import numpy as np


def classification_report(labels: np.ndarray, predictions: np.ndarray, classes: list[str]) -> dict[str, Any]:
    """UAR (mean of per-class recalls), WAR (accuracy), recalls and confusion matrix (rows: true class).

    ``labels`` and ``predictions`` are (clips,) class indices. A class without a test clip has no recall (None) and
    does not count in UAR.
    """
    count = len(classes)
    confusion = np.bincount(labels * count + predictions, minlength=count * count).reshape(count, count)
    per_class = confusion.sum(axis=1)
    recalls = [float(confusion[i, i] / per_class[i]) if per_class[i] else None for i in range(count)]
    present = [recall for recall in recalls if recall is not None]
    return {
        "uar": float(np.mean(present)) if present else None,
        "war": float(np.trace(confusion) / max(len(labels), 1)),
        "per_class_recall": dict(zip(classes, recalls, strict=True)),
        "confusion_matrix": confusion.tolist(),
        "classes": classes,
        "clips": int(len(labels)),
    }
