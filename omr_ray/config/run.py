"""The config of a training run over dialogues (`omr-ray train`)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from omr_ray.config.reading import Config
from omr_ray.config.rewards import HttpScorer, InfoNce, Rewards

# -- what is trained ---------------------------------------------------------------------------------------------------


class AtelierModel(Config):
    """The embedded world's own small models; runs on any machine."""

    kind: Literal["atelier"] = "atelier"
    controlnet: str | None = Field(None, description='a ControlNet for poses: a directory, or "atelier" for the embedded one')


class DiffusersModel(Config):
    """Stable Diffusion 1.x, 2.x or SDXL, from a directory in the diffusers format or a hub id."""

    kind: Literal["diffusers"] = "diffusers"
    path: str
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    channels_last: bool = True
    compile: bool = False
    controlnet: str | None = Field(None, description="a ControlNet for poses: a directory in the diffusers format or a hub id")


def _without_pose(model: Model) -> Model:
    if model.controlnet is not None:
        raise ValueError("a controlnet leads the generation of a dialogue, training samples without a pose; leave model.controlnet out")
    return model


Model = Annotated[AtelierModel | DiffusersModel, Field(discriminator="kind")]
TrainedModel = Annotated[Model, AfterValidator(_without_pose)]


class Lora(Config):
    """PEFT LoRA on attention q, k, v and out (OMR section 4.1)."""

    rank: PositiveInt = 4
    alpha: PositiveFloat = 4.0
    start: str | None = Field(None, description="an exported adapter that training starts from; None: one that changes nothing yet")


class Sampler(Config):
    """Multi-round DDIM sampling (OMR eq. 2, 3) and which of its steps are kept for training."""

    steps: PositiveInt = 70
    eta: PositiveFloat = 1.0
    guidance_scale: float = Field(1.0, ge=1.0, description="1 means one branch: no guidance")
    strength: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.6,), min_length=1, description="tau_r of rounds 2, 3, ... as a share of the steps; the last value repeats"
    )
    siblings: PositiveInt = Field(8, description="G, samples of one round that are compared with one another")
    window: tuple[PositiveInt, PositiveInt] = Field((1, 40), description="[T1, T2], counted from the last step, inclusive")
    train_steps_per_round: PositiveInt = 1
    shared_window: bool = Field(True, description="siblings of a round train the same steps")
    height: PositiveInt | None = Field(None, description="pixels; None is the model's own size")
    width: PositiveInt | None = None
    batch_size: PositiveInt = Field(64, description="samples that go through the UNet together")

    @model_validator(mode="after")
    def window_lies_in_the_steps(self) -> Sampler:
        low, high = self.window
        if not low <= high <= self.steps:
            raise ValueError(f"window {list(self.window)} must satisfy T1 <= T2 <= steps ({self.steps})")
        return self


# -- learning ----------------------------------------------------------------------------------------------------------


class Ppo(Config):
    """Clipped importance ratio on the stored steps, after DDPO and Flow-GRPO.

    Its gradient comes from comparing samples, so it takes any reward, and many samples. The preference score is also
    differentiable: `reward_gradient` adds what its gradient says about the same stored steps, as in Algorithm 1.
    """

    type: Literal["ppo"] = "ppo"
    clip_range: PositiveFloat = 1e-4
    advantage_clip: PositiveFloat = 5.0
    baseline: Literal["group", "leave_one_out"] = "group"
    kl_weight: NonNegativeFloat = Field(0.0, description="weight of KL(policy || adapter off), closed form")
    passes: PositiveInt = Field(1, description="times the batch is used before new rollouts")
    minibatches: PositiveInt = Field(1, description="optimizer steps a pass")
    reward_gradient: NonNegativeFloat = Field(
        0.0, description="weight of -R_MI through the one-step x0 of the stored steps, beside the ratio (Algorithm 1, lines 7 to 14)"
    )
    reward_cap: float | None = Field(None, description="an image whose score is above is not pushed on: without it, siblings grow alike")
    diversity_gradient: NonNegativeFloat = Field(
        0.0, description="weight of -R_div through the same x0: without it, a strong preference makes siblings alike"
    )


class Refl(Config):
    """Algorithm 1 to the letter: the gradient of the preference score through the one-step x0 prediction."""

    type: Literal["refl"] = "refl"
    reward_gradient: ClassVar[float] = 1.0
    reward_cap: float | None = Field(None, description="as in ppo")
    diversity_gradient: NonNegativeFloat = Field(0.0, description="as in ppo")
    kl_weight: NonNegativeFloat = 0.0
    passes: PositiveInt = 1
    minibatches: PositiveInt = 1


Algorithm = Annotated[Ppo | Refl, Field(discriminator="type")]


class MultiRoundLoss(Config):
    """L_multi on pairs of consecutive rounds (OMR eq. 4, 5, 13). Weight 0 turns it off."""

    weight: NonNegativeFloat = 0.0
    tau1: tuple[float, float] = Field((0.3, 0.9), description="range of tau1, as a share of the training schedule")
    tau2: tuple[float, float] = Field((0.1, 0.9), description="range of tau2")
    through_rounds: bool = Field(False, description="let the gradient pass through the first round")
    first_steps: PositiveInt = Field(1, description="denoising steps of the first round, from tau1 down; 1 is eq. 5")
    scales: dict[PositiveInt, PositiveFloat] = Field(
        {1: 1.0}, min_length=1, description="side of the blocks of the latent whose mean errors count -> weight; {1: 1} is eq. 13"
    )


class NoiseLoss(MultiRoundLoss):
    """L_multi on data pairs beside the reward (Algorithm 1, lines 16-17), into the adapter; `omr-ray finetune` has it for a whole UNet."""

    pairs_per_step: PositiveInt = 16


class Optimization(Config):
    """AdamW in a DeepSpeed group of `ranks` processes."""

    ranks: PositiveInt = 1
    zero_stage: Literal[0, 1, 2, 3] = 0
    learning_rate: PositiveFloat = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    micro_batch: PositiveInt = Field(64, description="rows of one forward; the rest is gradient accumulation")
    gradient_checkpointing: bool = False
    deepspeed: str | None = Field(None, description="a DeepSpeed JSON file whose keys are added to ours")


class Learner(Optimization):
    """The learner of a training run over dialogues."""

    min_ranks: PositiveInt = Field(1, description="a restarted group goes on with so many at least, where not all ranks have a place")
    warmup_steps: NonNegativeInt = 0
    cooldown_steps: NonNegativeInt = Field(0, description="the rate falls in a straight line over the last ones, to nothing behind them")
    ema_decay: float = Field(0.95, ge=0, lt=1, description="of the adapter; 0 turns it off")


# -- actors and machines -----------------------------------------------------------------------------------------------


class Actor(Config):
    """What one actor asks Ray for."""

    num_cpus: NonNegativeFloat = 1
    num_gpus: NonNegativeFloat = 0
    threads: PositiveInt = Field(1, description="torch threads of one actor, on CPU")


class Actors(Actor):
    """How many actors of a kind, and what each asks Ray for."""

    count: PositiveInt = 1


class Workers(Config):
    rollout: Actors = Actors()
    reward: Actors = Actors()
    learner: Actor = Actor()  # their number is learner.ranks
    max_attempts: PositiveInt = Field(3, description="tries of one request before the run stops")
    timeout_s: PositiveFloat = Field(600.0, description="limit of one rollout, scoring or learner call")
    start_timeout_s: PositiveFloat = Field(600.0, description="limit for an actor to load its models")

    @model_validator(mode="before")
    @classmethod
    def learner_count_follows_ranks(cls, values: Any) -> Any:
        if isinstance(values, dict) and "count" in (values.get("learner") or {}):
            raise ValueError("workers.learner.count is learner.ranks; set that instead")
        return values


class Cluster(Config):
    """The machines a plan must fit on (`omr-ray plan`); training itself asks Ray what is there."""

    name: str = "this machine"
    nodes: PositiveInt = 1
    cpus_per_node: PositiveInt = 2
    memory_gib_per_node: PositiveFloat = 8.0
    gpus_per_node: NonNegativeInt = 0
    gpu_memory_gib: NonNegativeFloat = 0.0


# -- data, bookkeeping, the run ----------------------------------------------------------------------------------------


class AtelierDialogues(Config):
    """Dialogues of the embedded world, made on the fly."""

    kind: Literal["atelier"] = "atelier"
    rounds: PositiveInt = 4


class JsonDialogues(Config):
    """One dialogue a JSON file, in a directory (the papers' own form)."""

    kind: Literal["json"] = "json"
    path: str


class ParquetDialogues(Config):
    """What `omr-ray data build` wrote, here or in a bucket: its train split is trained on, its test split is held out."""

    kind: Literal["parquet"] = "parquet"
    path: str


Dialogues = Annotated[AtelierDialogues | JsonDialogues | ParquetDialogues, Field(discriminator="kind")]


class Checkpoints(Config):
    every: PositiveInt = 10
    keep: PositiveInt = 2


class Overlap(Config):
    """Sampling goes on while rewards are scored and the learner works (`omr_ray/overlapped.py`)."""

    max_staleness: NonNegativeInt = Field(
        1, description="step s is sampled with the weights of update s - 1 - max_staleness, never others; 0 waits for each update"
    )
    wait_s: PositiveFloat = Field(3600.0, description="limit of the wait for one step's scored samples")


class Evaluation(Config):
    """Held-out dialogues, the same seeds before and after training."""

    dialogues: PositiveInt = 48
    siblings: PositiveInt = 4
    max_rounds: PositiveInt = Field(8, description="after this many rounds a dialogue counts as not satisfied")
    seed: NonNegativeInt = 7
    contact_sheet: PositiveInt = Field(6, description="dialogues shown in the report")


class Tracking(Config):
    tensorboard: bool = True
    wandb: str | None = Field(None, description="project name")
    mlflow: str | None = Field(None, description="tracking URI")


class RunConfig(Config):
    """One training run."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    seed: NonNegativeInt = 0
    steps: PositiveInt = 100
    dialogues_per_step: PositiveInt = 8
    model: TrainedModel = AtelierModel()
    lora: Lora = Lora()
    dialogues: Dialogues = AtelierDialogues()
    sampler: Sampler = Sampler()
    rewards: Rewards = Rewards()
    algorithm: Algorithm = Ppo()
    noise_loss: NoiseLoss = NoiseLoss()
    learner: Learner = Learner()
    overlap: Overlap | None = Field(None, description="null: a step is sampled when the one before is learned")
    workers: Workers = Workers()
    cluster: Cluster = Cluster()
    checkpoint: Checkpoints = Checkpoints()
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()

    @property
    def samples_per_step(self) -> int:
        """Sibling samples of one dialogue round that one step makes, over all dialogues."""
        return self.dialogues_per_step * self.sampler.siblings

    @model_validator(mode="after")
    def groups_can_be_compared(self) -> RunConfig:
        if isinstance(self.algorithm, Ppo) and self.sampler.siblings < 2:
            raise ValueError("sampler.siblings must be at least 2 for ppo: an advantage compares siblings of one round")
        if isinstance(self.rewards.mutual_information, InfoNce) and self.dialogues_per_step < 2:
            raise ValueError("dialogues_per_step must be at least 2 for infonce: prompts of different dialogues compete")
        if self.learner.min_ranks > self.learner.ranks:
            raise ValueError(f"learner.min_ranks ({self.learner.min_ranks}) must be at most learner.ranks ({self.learner.ranks})")
        if self.samples_per_step % self.learner.ranks:
            raise ValueError(
                f"dialogues_per_step x sampler.siblings ({self.samples_per_step}) must divide by learner.ranks ({self.learner.ranks})"
            )
        return self

    @model_validator(mode="after")
    def samples_may_be_as_old_as_that(self) -> RunConfig:
        if self.overlap is None:
            return self
        lag, longest = self.overlap.max_staleness, self.workers.max_attempts * self.workers.timeout_s
        if lag and isinstance(self.algorithm, Refl):
            raise ValueError("overlap.max_staleness must be 0 for refl: it has no importance ratio to weigh samples of older weights by")
        if lag >= self.steps:
            raise ValueError(
                f"overlap.max_staleness ({lag}) must be less than steps ({self.steps}): no sample would come from what is learned"
            )
        if self.overlap.wait_s <= longest:
            raise ValueError(
                f"overlap.wait_s ({self.overlap.wait_s:g}) must be more than workers.max_attempts x workers.timeout_s ({longest:g}): "
                "so long may a worker that hangs take to be given up"
            )
        return self

    @model_validator(mode="after")
    def requests_end_before_their_worker_is_replaced(self) -> RunConfig:
        for term in self.rewards.terms:
            if isinstance(term.scorer, HttpScorer) and term.scorer.longest_s >= self.workers.timeout_s:
                raise ValueError(
                    f"rewards.terms, {term.name}: all attempts of a request may take {term.scorer.longest_s:g} s, which must be less than "
                    f"workers.timeout_s ({self.workers.timeout_s:g}); lower attempts or timeout_s of the scorer"
                )
        return self
