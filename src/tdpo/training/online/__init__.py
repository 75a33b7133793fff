"""`PPOTrainer`: learning from rewards of the policy's own responses."""
