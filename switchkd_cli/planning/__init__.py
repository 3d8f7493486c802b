"""What a run will need, and whether this machine has it, before anything heavy is imported."""
