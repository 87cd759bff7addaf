"""The bench: every figure beside the floor, or another base, measured in the same run."""
