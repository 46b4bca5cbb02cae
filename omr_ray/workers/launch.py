"""Puts a run together: Ray, pools, judge, learner, run directory; then the controller's loop; then the report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from omr_ray import controller, plan
from omr_ray.atelier import WEIGHTS
from omr_ray.atelier.dialogues import dialogue_at
from omr_ray.atelier.oracle import Oracle
from omr_ray.config import AtelierModel, JsonDialogues, RunConfig
from omr_ray.data.json_dialogues import read_dialogues
from omr_ray.diffusion.adapters import export_adapter, load_adapter
from omr_ray.evaluation import protocols
from omr_ray.evaluation.report import write_report
from omr_ray.progress import ProgressBar
from omr_ray.rewards import schedule as schedules
from omr_ray.rewards.total import TotalReward
from omr_ray.runs import RunDirectory
from omr_ray.tracking import Tracker
from omr_ray.types import Dialogue, LearnerState, Rollout, ScoredRollout, Update, UserError
from omr_ray.workers.learner import LearnerGroup
from omr_ray.workers.pool import RewardPool, RolloutPool
