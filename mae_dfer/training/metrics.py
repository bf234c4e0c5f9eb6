"""Scores of a classifier, as facial expression work reports them: UAR, WAR and F1."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import f1_score, top_k_accuracy_score


def classification_report(
    labels: np.ndarray,
    predictions: np.ndarray,
    classes: list[str],
    probabilities: np.ndarray | None = None,
    *,
    protocol: str = "corrected",
) -> dict[str, Any]:
    """UAR (mean of per-class recalls), WAR (accuracy), F1, recalls and confusion matrix (rows: true class).

    A class without a test clip has no recall (None) and does not count in UAR. By the published protocol, UAR is None
    where such a class is predicted. F1 is averaged over the classes that occur among labels or predictions, evenly
    (``macro_f1``) and by their clips (``weighted_f1``).

    Args:
        labels, predictions: (clips,) class indices.
        probabilities: (clips, classes), or any scores; adds ``top5``, the share of clips whose class is among the
            five most probable, where there are more than five classes.
    """
    count = len(classes)
    confusion = np.bincount(labels * count + predictions, minlength=count * count).reshape(count, count)
    per_class = confusion.sum(axis=1)
    recalls = [float(confusion[i, i] / per_class[i]) if per_class[i] else None for i in range(count)]
    present = [recall for recall in recalls if recall is not None]
    undefined = protocol == "published" and bool(((per_class == 0) & (confusion.sum(axis=0) > 0)).any())
    report = {
        "uar": float(np.mean(present)) if present and not undefined else None,
        "war": float(np.trace(confusion) / max(len(labels), 1)),
        "macro_f1": float(f1_score(labels, predictions, average="macro", zero_division=0.0)),
        "weighted_f1": float(f1_score(labels, predictions, average="weighted", zero_division=0.0)),
        "per_class_recall": dict(zip(classes, recalls, strict=True)),
        "confusion_matrix": confusion.tolist(),
        "classes": classes,
        "clips": int(len(labels)),
    }
    if probabilities is not None and count > 5:
        report["top5"] = float(top_k_accuracy_score(labels, probabilities, k=5, labels=np.arange(count)))
    return report
