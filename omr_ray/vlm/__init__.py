"""Qwen-VL models: the reward model that judges an image against a prompt."""
