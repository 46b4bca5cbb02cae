"""The README's map must lead somewhere."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_every_file_of_the_concept_table_exists_and_cites_its_paper():
    rows = [line for line in README.splitlines() if line.startswith("| ") and "omr_ray/" in line]
    assert len(rows) >= 14
    for row in rows:
        for file in re.findall(r"`(omr_ray/[\w/]+\.py)`", row):
            text = (ROOT / file).read_text()
            assert re.search(r"OMR|TDRI|eq\.|arXiv", text), f"{file} cites no source"


def test_every_top_level_module_is_in_the_tree_and_the_other_way_round():
    tree = README.split("```\nomr_ray/\n")[1].split("```")[0].split("\njobs/")[0]
    named = {line.split()[0].rstrip("/") for line in tree.splitlines() if re.match(r"  \S", line)}
    found = {path.name for path in (ROOT / "omr_ray").iterdir() if path.name not in ("__init__.py", "__pycache__")}
    assert named == found


def test_every_config_and_job_that_is_named_exists():
    for file in set(re.findall(r"(?:configs|jobs|tests)/[\w/]+\.(?:yaml|sh|py)", README)):
        assert (ROOT / file).exists(), file
