"""ImageReward as published, in the directory that `rewards.terms` with `scorer.type: imagereward` reads.

    python jobs/convert_imagereward.py ImageReward.safetensors --tokenizer google-bert/bert-base-uncased --out models/imagereward

The authors hand out a pickle, ImageReward.pt, and pickles are never opened here: give the same tensors under the same
names ("blip.visual_encoder...", "blip.text_encoder...", "mlp.layers...") as a safetensors file.
"""

import argparse
import sys
from pathlib import Path

from transformers import AutoTokenizer

from omr_ray.types import UserError
from omr_ray.vlm.image_reward_original import from_original
from omr_ray.weights import read_safetensors, reported


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--tokenizer", required=True, help="directory or hub id of BERT's uncased tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        with reported(options.tokenizer):
            tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
        from_original(read_safetensors(options.weights)).save_directory(options.out, tokenizer)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
