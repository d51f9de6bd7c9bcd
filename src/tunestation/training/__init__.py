"""Training: the model under its adapters, the order of the data, the loss, checkpoints, DeepSpeed, callbacks."""
