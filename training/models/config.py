"""What a network looks like: one frozen model per run, read from a config file, stored with the run."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

ModelName = Literal["shared-bottom", "mmoe", "ple", "dlen-mmoe", "dlen-ple", "esmm"]
MODEL_NAMES: tuple[ModelName, ...] = ("shared-bottom", "mmoe", "ple", "dlen-mmoe", "dlen-ple")
"""Models that ask nothing of the tasks; `esmm` needs `within`."""

Width = int
Hidden = tuple[Width, ...]


class ModelConfig(BaseModel):
    """Sizes of a network. Defaults are the paper's §4.1 where it gives them (experts, latent network).

    Attributes:
        name: backbone, with the prefix `dlen-` when it wears the latent head.
        experts: number of MMOE experts.
        expert_hidden: widths of each expert's layers (ReLU after each); also of the shared bottom.
        shared_experts: PLE experts shared by all tasks, per level.
        task_experts: PLE experts of each task, per level.
        levels: PLE extraction levels.
        tower_hidden: widths of each task's tower (not given in the paper).
        latent_hidden: widths of the latent network.
        dropout: share of tower and latent inputs dropped in training.
        embedding_std: standard deviation of initial embeddings.
        alpha_k: k of α = k · base rate (Eq. 7 and the paper's "0.1~0.5 times").
        prior_up: π₀, P(UP) at initialisation.
        base_rate_init: start every P(task) at its base rate.
        within: task → the one it lies within: its label is 1 only where that one's is, and it is modelled as
            P(parent)·P(task|parent) (ESMM, Ma et al., 2018).
        mirror_negative: a negative task that is learned has its bound under UP instead of under ¬UP.
        habit_towers: P(t|UP) and P(t|¬UP) see user and context only, so that what the item does goes through P(UP).
        wide: a linear layer from the input to every task's logits, beside the towers ("Wide & Deep Learning", Cheng et
            al., 2016): what a rare task takes from the input need not pass through experts that frequent tasks shape.
        dwell: how long a row was looked at is an emission of the latent state too; needs data with dwell and a joint
            likelihood.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ModelName = "dlen-mmoe"
    experts: int = Field(default=5, ge=1, le=256)
    expert_hidden: Hidden = (256, 128, 64)
    shared_experts: int = Field(default=5, ge=1, le=256)
    task_experts: int = Field(default=2, ge=1, le=64)
    levels: int = Field(default=1, ge=1, le=8)
    tower_hidden: Hidden = (32,)
    latent_hidden: Hidden = (256, 128, 64)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    embedding_std: float = Field(default=0.1, gt=0, le=1)
    alpha_k: float = Field(default=0.3, gt=0, lt=1)
    prior_up: float = Field(default=0.6, gt=0, lt=1)
    base_rate_init: bool = True
    within: dict[str, str] = {}
    mirror_negative: bool = False
    habit_towers: bool = False
    wide: bool = Field(default=False, exclude_if=lambda wide: not wide)
    dwell: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name == "esmm" and not self.within:
            raise ValueError("esmm needs within, such as {like: click}")
        if self.habit_towers and not self.has_latent:
            raise ValueError(f"habit_towers needs a model with P(UP), not {self.name}")
        if self.dwell and not self.has_latent:
            raise ValueError(f"dwell needs a model with P(UP), not {self.name}")
        return self

    @property
    def backbone(self) -> str:
        """Name of the backbone, without the latent prefix."""
        return self.name.removeprefix("dlen-")

    @property
    def has_latent(self) -> bool:
        """Whether the model wears the latent head."""
        return self.name.startswith("dlen-")
