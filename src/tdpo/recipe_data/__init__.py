"""The data of a recipe: pairs, prompts and rewards. They are read and checked before any model is loaded."""
