"""What `ray job submit` runs on a cluster; the same function as `omr-ray train`.

ray job submit --working-dir . -- python jobs/train.py configs/sd21.yaml --out /mnt/shared/runs/sd21 steps=2000
"""

import sys

from omr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
