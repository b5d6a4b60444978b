"""Settings of the whole suite."""

import torch

# The tensors of the tests are small: threads that wait for each other on a busy machine cost far more than they save.
torch.set_num_threads(1)
