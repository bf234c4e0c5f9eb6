"""One thread per test process by default: tests are small, and CI machines have few cores."""

import torch

torch.set_num_threads(min(2, torch.get_num_threads()))
