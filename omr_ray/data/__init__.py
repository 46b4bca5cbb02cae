"""Reading and writing what the model learns from."""
