"""Training: one loop (`loop.py`), two tasks on it (`pretrain.py`, `finetune.py`), scoring (`evaluate.py`)."""
