"""What `ray job submit` runs on a cluster; the same function as `omr-ray evaluate`.

ray job submit --working-dir . -- python jobs/evaluate.py configs/sd21.yaml --adapter /mnt/shared/runs/sd21/adapter --out /mnt/shared/judged
"""

import sys

from omr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
