"""The user's side of a dialogue."""
