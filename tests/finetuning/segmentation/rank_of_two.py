"""One rank of two of a fine-tuning, on a CPU: `python rank_of_two.py PLAN.json DATASET.json RANK PORT OUT.json`.

nnU-Net's distributed training is for GPUs only: it needs CUDA devices and NCCL. Here both are omitted, and everything
else is what `nnUNetv2_train -num_gpus 2` runs in each process.
"""

import hashlib
import json
import os
import sys
from importlib import import_module
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from viewalign.finetuning.segmentation import plans
from viewalign.finetuning.segmentation.trainer import ViewalignTrainer

engine = import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
engine.DDP = lambda network, device_ids: DistributedDataParallel(network)
engine.MetaLogger.plot_progress_png = lambda *_: None


class WithDiary(ViewalignTrainer):
    """The trainer with a diary of its weights."""

    def note(self):
        encoder = b"".join(p.detach().numpy().tobytes() for p in self.encoder_parameters())
        whole = b"".join(p.detach().numpy().tobytes() for p in self.module.parameters())
        self.diary.append([hashlib.sha256(part).hexdigest() for part in (encoder, whole)])

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        self.note()

    def on_epoch_end(self):
        super().on_epoch_end()
        self.note()


def main(plan, dataset, rank, port, out):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": "2"}
    distributed.init_process_group("gloo")
    tree, description = json.loads(Path(plan).read_text()), json.loads(Path(dataset).read_text())
    trainer = WithDiary(tree | {"continue_training": False}, plans.CONFIGURATION, 0, description, torch.device("cpu"))
    trainer.device, trainer.diary = torch.device("cpu"), []
    trainer.run_training()
    facts = {"diary": trainer.diary, "ddp": isinstance(trainer.network, DistributedDataParallel)}
    Path(out).write_text(json.dumps(facts | {"batch": trainer.batch_size, "folder": str(trainer.output_folder)}))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
