"""Where and how fast a run happens: facts that never change a result, and so are never part of its identity."""

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.settings import arrange_form

NO_TRACKING = "none"


class Execution(BaseModel):
    """Where and how fast; runs that differ only here give the same bytes, in training but for rounding.

    Which rounding depends on what, and on which processors, is in docs/training.md.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=arrange_form)

    home: Path = Field(
        Path(".bessemer"), description="Folder that holds all state: artifacts, run records, tracking, servers."
    )
    workers: int = Field(
        os.cpu_count() or 1, ge=1, le=1024, description="Worker processes over which a data stage's shards are mapped."
    )
    threads: int = Field(
        os.cpu_count() or 1,
        ge=1,
        le=1024,
        description="Threads within one training process (intra-op parallelism); kept in the manifest, for verify.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device of training and evaluation; auto: CUDA if there is one."
    )
    processes: int = Field(
        1, ge=1, le=65536, description="Training processes over all nodes (the world size), one per GPU."
    )
    strategy: Literal["ddp", "fsdp2", "deepspeed"] = Field(
        "ddp",
        description="Data parallelism of several processes: ddp replicates the model, fsdp2 and deepspeed shard it.",
    )
    launcher: Literal["torchrun", "ray"] = Field(
        "torchrun",
        description="What starts training processes: torchrun here, or Ray Train on the cluster at engine_address.",
    )
    engine: Literal["processes", "dask", "ray"] = Field(
        "processes", description="What maps data stages over shards: this machine's processes, a Dask or a Ray cluster."
    )
    engine_address: str = Field(
        "", description="Address of the Dask scheduler or Ray head; empty: a local cluster, for data stages only."
    )
    micro_batch_tokens: int = Field(
        # docs/LOG.md, 2026-11-25: 1,942 tokens per CPU-s at 31M parameters; 1,794 at 8,192, 1,450 at 16,384.
        4096,
        ge=128,
        description="Tokens of one micro-batch, one forward and backward pass of a process; a step accumulates the "
        "gradients of several. A GPU takes far more than a CPU's 4096.",
    )
    # A CPU's fused kernels gain nothing from it (docs/LOG.md, 2026-11-22); an H200 takes twice the tokens (2026-11-25).
    compile: Literal["no", "layers"] = Field(
        "no",
        description="Whether torch.compile compiles each layer in training: for a GPU, and for more than minutes.",
    )
    tracking_uri: str = Field(
        "", description="MLflow tracking URI; empty: SQLite under the home folder; none: no tracking."
    )
    mirror: str = Field(
        "", description="fsspec address of a store shared by several machines; empty: this machine only."
    )

    @model_validator(mode="after")
    def _can_be_had(self) -> "Execution":
        if self.processes == 1 and self.strategy != "ddp":
            raise ValueError(
                f"strategy is '{self.strategy}' but processes is 1, and one process has nobody to share a model with: "
                "set processes to 2 or more, or strategy to 'ddp'"
            )
        if self.launcher == "ray" and (not self.engine_address or self.engine == "dask"):
            raise ValueError(
                f"launcher is 'ray', which trains on the Ray cluster at engine_address, but engine_address is "
                f"'{self.engine_address}' and engine is '{self.engine}': give the address of a Ray head ('auto' on a "
                "machine of the cluster), and an engine other than 'dask'"
            )
        return self
