"""TDRI's dialogue: prompts from what was said, questions from what was shown, the tree of rounds, and a simulated user."""
