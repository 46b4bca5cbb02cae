"""Whole dialogues of simulated users with the interactive system, and what they say of it (TDRI section 4)."""
