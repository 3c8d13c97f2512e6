"""One torch thread in every test: two busy cores make an OpenMP region cost a scheduler quantum."""

import torch

torch.set_num_threads(1)
