"""What comes from other people's hands: documents that are read within limits, and text that is shown as text only."""
