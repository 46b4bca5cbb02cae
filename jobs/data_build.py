"""What `ray job submit` runs on a cluster; the same function as `omr-ray data build`.

ray job submit --working-dir . -- python jobs/data_build.py configs/data_papers.yaml --out s3://bucket/dialogues
"""

import sys

from omr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", "build", *sys.argv[1:]]))
