"""A campaign of damaged and hostile inputs: `python -m tests.fuzz`, or `make fuzz`.

Each input is a recipe, a model folder, data or an artifact, altered at random from a seed and its index, so that any of
them can be made again. What is judged stands in `tests.fuzz.campaign`.
"""
