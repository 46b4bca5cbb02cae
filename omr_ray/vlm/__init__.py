"""Qwen-VL models: the reward model that judges an image against a prompt, and the language model of a dialogue."""
