"""Model folders: what they hold, how they are converted, and how weights of any size are streamed."""
