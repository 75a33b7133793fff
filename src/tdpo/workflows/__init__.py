"""From a recipe and a run directory to a trained model."""
