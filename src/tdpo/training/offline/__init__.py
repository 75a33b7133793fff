"""`TDPOTrainer`: learning from preference pairs."""
