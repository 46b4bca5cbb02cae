"""What `ray job submit` runs on a cluster; the same function as `omr-ray finetune`.

ray job submit --working-dir . -- python jobs/finetune.py configs/sd21_dialogue.yaml --out /mnt/shared/runs/sd21_dialogue
"""

import sys

from omr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
