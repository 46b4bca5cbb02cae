"""What `ray job submit` runs on a cluster; the same function as `omr-ray reward train`.

ray job submit --working-dir . -- python jobs/reward_train.py configs/reward_qwen25vl_7b.yaml --out /mnt/shared/runs/reward
"""

import sys

from omr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["reward", "train", *sys.argv[1:]]))
