"""From checkpoints to a model folder: reading what others wrote, merging, proving the merge, and what goes with the folder."""
