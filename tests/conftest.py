import torch

# Many small operators: one thread is as fast as two, and does not suffer from what else the machine does.
torch.set_num_threads(1)
