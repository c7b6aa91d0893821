"""torchrun of the Python that runs this. ``python -m torch.distributed.run`` would import a ``torch.py`` of the current
folder in place of torch."""

from torch.distributed.run import main

if __name__ == "__main__":
    main()
