"""What `ray job submit` runs on a cluster; the same function as `omr-ray sweep`.

ray job submit --working-dir . -- python jobs/sweep.py configs/sweep_schedule.yaml --out /mnt/shared/runs/sweep_schedule
"""

import sys

from omr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
