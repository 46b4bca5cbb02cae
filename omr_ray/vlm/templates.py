"""What a Qwen-VL model reads, word for word. A trained model depends on every character here."""

from __future__ import annotations

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")

# The reward is read where the answer would begin: the last token, which has seen the image and the whole prompt.
# There is no instruction: the network is trained for this one question, and every token costs time.
REWARD_TEMPLATE = "<|im_start|>user\n" + IMAGE + "{prompt}<|im_end|>\n<|im_start|>assistant\n"
