"""What the papers learn with: tensors and floats in, tensors out. No Ray, no config, no files."""
