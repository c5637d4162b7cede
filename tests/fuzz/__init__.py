"""A campaign of damaged and hostile inputs: `python -m tests.fuzz`, or `make fuzz`.

Each input is a recipe, a model folder, data or an artifact, altered at random from a seed and its index, so that any of
them can be made again. What is judged stands in `tests.fuzz.campaign`.
"""

import os

# As in the tests: one thread and no network, set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
