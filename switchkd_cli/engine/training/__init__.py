"""One stage of training: data loader, objective, optimizer, checkpoints, processes."""
