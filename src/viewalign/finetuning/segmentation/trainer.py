"""The trainer that stock nnU-Net runs: nnU-Net's data, losses, augmentation and inference, our weights and schedule.

All its settings are in the plan (`plans.BLOCK`), so that `nnUNetv2_train`, `--c`, `--val` and `nnUNetv2_predict` only
need the name of the plan.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from viewalign.errors import UserError
from viewalign.finetuning.segmentation import encoders
from viewalign.finetuning.segmentation import plans as network_plans
from viewalign.finetuning.segmentation.schedule import Schedule, Stage
from viewalign.utils import precision as arithmetic
from viewalign.utils.io import atomic_write
from viewalign.utils.rng import derive_seed
from viewalign.weights import files, loading, names
from viewalign.weights.initial import write_report

REPORT = "transfer.json"


@dataclass(frozen=True)
class EpochFacts:
    """Progress after an epoch: completed and total epochs, losses, pseudo Dice, and seconds."""

    done: int
    epochs: int
    train_loss: float
    validation_loss: float
    dice: float
    seconds: float


class EpochRate:
    """Learning rate scheduler; nnU-Net calls `step` with the number of the epoch."""

    def __init__(self, optimizer: Optimizer, schedule: Schedule) -> None:
        self._optimizer, self._schedule = optimizer, schedule

    def step(self, epoch: int) -> None:
        """Set the learning rate of all parameters."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._schedule.rate(epoch)


class ViewalignTrainer(nnUNetTrainer):  # type: ignore[misc]
    """Fine-tunes a pretrained encoder, or trains the network of the same plan from scratch."""

    network: Any
    grad_scaler: Any
    listener: ClassVar[Callable[[EpochFacts], None] | None] = None
    """Called after each epoch."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  the signature is nnU-Net's
    ) -> None:
        if network_plans.BLOCK not in plans:
            raise UserError(
                f"The plan {plans.get('plans_name')} was not made by viewalign: create one with `viewalign finetune "
                "segmentation` or `viewalign export RUN format=nnunet`, and pass its name to -p."
            )
        super().__init__(plans, configuration, fold, dataset_json, device)
        block = self.plans_manager.plans[network_plans.BLOCK]
        self.schedule = Schedule.from_plan(block["schedule"])
        self.encoder: dict[str, Any] | None = block["encoder"]
        self.num_epochs, self.initial_lr = self.schedule.epochs, self.schedule.lr
        self.weight_decay, self.save_every = self.schedule.weight_decay, self.schedule.save_every
        self.num_iterations_per_epoch = self.schedule.iterations
        self.num_val_iterations_per_epoch = self.schedule.validation_iterations
        self.enable_deep_supervision = False
        self._restored = False
        if self.schedule.precision != "auto":
            self.grad_scaler = None
        _check_precision(self.schedule, self.device, self.configuration_manager)

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,  # noqa: ARG004  the signature is nnU-Net's
    ) -> nn.Module:
        """Build the plan's network, for training and prediction."""
        configuration = configuration_manager.configuration
        schedule = Schedule.from_plan(plans_manager.plans.get(network_plans.BLOCK, {}).get("schedule", {}))
        return network_plans.build_network(
            configuration["architecture"],
            num_input_channels,
            num_output_channels,
            configuration["patch_size"],
            schedule.drop_path,
        )

    def initialize(self) -> None:
        """Build network and optimizer; the decoder's initial weights depend on seed and fold."""
        self._seed("network")
        super().initialize()

    def configure_optimizers(self) -> tuple[Optimizer, EpochRate]:
        """Return one optimizer for all stages: frozen weights have no gradient and are skipped."""
        self._freeze_unused_outputs()
        self._freeze(self.schedule.stage(self.current_epoch))
        parameters, lr, decay = self.network.parameters(), self.schedule.lr, self.schedule.weight_decay
        optimizer: Optimizer
        if self.schedule.optimizer == "adamw":
            fused = self.device.type in {"cpu", "cuda"}
            optimizer = torch.optim.AdamW(parameters, lr, betas=(0.9, 0.98), weight_decay=decay, fused=fused)
        else:
            optimizer = torch.optim.SGD(parameters, lr, momentum=0.99, nesterov=True, weight_decay=decay)
        return optimizer, EpochRate(optimizer, self.schedule)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:  # noqa: N802  nnU-Net's spelling
        """Disable mirroring if the plan does."""
        rotation, flat, initial, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.schedule.mirror:
            axes, self.inference_allowed_mirroring_axes = None, None
        return rotation, flat, initial, axes

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Do nothing: there is no deep supervision."""

    def on_train_start(self) -> None:
        """Load the encoder unless a checkpoint was loaded, and enter the first stage."""
        if not self.was_initialized:
            self.initialize()
        if not self._restored and self.encoder is not None:
            self._load_encoder(self.encoder)
        self._enter_stage(self.schedule.stage(self.current_epoch))
        self._seed("first batches")
        super().on_train_start()

    def _load_encoder(self, entry: dict[str, Any]) -> None:
        source = encoders.read_stored(Path(self.preprocessed_dataset_folder_base), entry)
        d, h, w = self.configuration_manager.patch_size
        report = loading.load_encoder_weights(self.module, source, (d, h, w), entry["min_share"], "min_share")
        self.print_to_log_file(report.text(), also_print_to_console=True, add_timestamp=False)
        if self.local_rank == 0:
            write_report(report, Path(self.output_folder) / REPORT)

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Load a checkpoint of this training and enter the stage of its epoch."""
        super().load_checkpoint(filename_or_checkpoint)
        self._restored = True
        self._enter_stage(self.schedule.stage(self.current_epoch))

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint atomically, keeping the previous one on a full disk.

        Raises:
            UserError: the final checkpoint cannot be written.
        """
        if self.local_rank != 0 or self.disable_checkpointing:
            return
        path = Path(filename)
        try:
            with atomic_write(path) as partial:
                super().save_checkpoint(str(partial))
        except (OSError, RuntimeError) as problem:  # torch raises the latter on a full disk
            if path.name == files.CHECKPOINT:
                raise UserError(
                    f"The final checkpoint of {path.parent} could not be written ({problem}). Free some space "
                    "and run the same command again to resume."
                ) from None
            self.print_to_log_file(f"{path.name} could not be written ({problem}); the previous one is kept.")

    def on_train_epoch_start(self) -> None:
        """Enter the epoch's stage and seed its random draws, so that a resumed training repeats them."""
        self._enter_stage(self.schedule.stage(self.current_epoch))
        self._seed(f"epoch {self.current_epoch}")
        super().on_train_epoch_start()

    @property
    def module(self) -> nn.Module:
        """The network without the wrappers of DDP and torch.compile."""
        network: Any = self.network
        if isinstance(network, DistributedDataParallel):
            network = network.module
        bare: nn.Module = network._orig_mod if isinstance(network, OptimizedModule) else network
        return bare

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the encoder's parameters, which a decoder of dynamic-network-architectures lists again."""
        own = dict(self.module.named_parameters())
        place = loading.find_encoder(list(own))
        starts = tuple(place.prefix + name for name in names.ENCODER[place.family])
        return [parameter for name, parameter in own.items() if name.startswith(starts)]

    def _freeze_unused_outputs(self) -> None:
        """Freeze unused outputs for deep supervision, for whose gradients DDP would wait."""
        outputs = getattr(getattr(self.module, "decoder", None), "seg_layers", ())
        for output in outputs[:-1]:
            output.requires_grad_(False)

    def _freeze(self, stage: Stage) -> bool:
        """Freeze or unfreeze the encoder; return whether anything changed."""
        wanted = stage == "whole"
        parameters = self.encoder_parameters()
        changed = any(parameter.requires_grad != wanted for parameter in parameters)
        for parameter in parameters:
            parameter.requires_grad_(wanted)
        return changed

    def _enter_stage(self, stage: Stage) -> None:
        """Enter a stage; DDP is wrapped again if parameters with gradients change."""
        if self._freeze(stage):
            self.print_to_log_file(f"The encoder is now {'frozen' if stage == 'frozen' else 'trained'}.")
            if isinstance(self.network, DistributedDataParallel):
                ids = [self.local_rank] if self.device.type == "cuda" else None
                self.network = DistributedDataParallel(self.network.module, device_ids=ids)

    def _seed(self, purpose: str) -> None:
        seed = derive_seed(self.schedule.seed, str(self.fold), purpose, self.local_rank) % 2**32
        random.seed(seed)
        np.random.seed(seed)  # nnU-Net's data loaders use the global generator
        torch.manual_seed(seed)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Run one step with the plan's precision and gradient clipping."""
        images = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"].to(self.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss: Tensor = self.loss(self.network(images), target)
        if self.grad_scaler is None:
            loss.backward()
            self._clip()
            self.optimizer.step()
        else:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
            self._clip()
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        return {"loss": loss.detach().cpu().numpy()}

    def _autocast(self) -> AbstractContextManager[Any]:
        precision: str = self.schedule.precision
        if precision == "auto":  # as nnU-Net, on every GPU
            precision = "fp16" if self.device.type == "cuda" else "fp32"
        return arithmetic.autocast(self.device.type, precision)

    def _clip(self) -> None:
        trained = [parameter for parameter in self.network.parameters() if parameter.grad is not None]
        torch.nn.utils.clip_grad_norm_(trained, self.schedule.clip)

    def on_epoch_end(self) -> None:
        """Call the listener."""
        super().on_epoch_end()
        if ViewalignTrainer.listener is not None and self.local_rank == 0:
            value = self.logger.get_value
            ViewalignTrainer.listener(
                EpochFacts(
                    done=self.current_epoch,
                    epochs=self.num_epochs,
                    train_loss=float(value("train_losses", step=-1)),
                    validation_loss=float(value("val_losses", step=-1)),
                    dice=float(value("mean_fg_dice", step=-1)),
                    seconds=time.time() - float(value("epoch_start_timestamps", step=-1)),
                )
            )

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predict the validation cases, averaging over mirrored images if the plan does."""
        axes = self.inference_allowed_mirroring_axes
        if not self.schedule.tta:
            self.inference_allowed_mirroring_axes = None
        super().perform_actual_validation(save_probabilities)
        self.inference_allowed_mirroring_axes = axes


def _check_precision(schedule: Schedule, device: torch.device, configuration: Any) -> None:
    """Reject bfloat16 on CPUs for networks whose convolutions may be wrong (docs/decisions.md)."""
    architecture = configuration.configuration["architecture"]
    if schedule.precision != "bf16" or device.type != "cpu" or network_plans.is_primus(architecture):
        return
    depth = configuration.patch_size[0] // network_plans.strides_of(architecture)[0]
    if depth < 3:
        raise UserError(
            f"precision=bf16 is not supported here: the network's deepest maps are {depth} cells deep, and torch's "
            "bfloat16 convolutions on CPUs may return wrong gradients for such maps. Use fp32, or a larger patch."
        )
