"""What a recipe trains on, read and checked before any model is loaded."""
