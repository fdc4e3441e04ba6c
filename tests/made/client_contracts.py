"""What other programs ask of a checkpoint, as data: observed with the real loaders at the commits named here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Contract:
    """What one client does with a checkpoint.

    Attributes:
        commit: of the client that was observed.
        files: names that it opens or fetches.
        root: keys at the top of the checkpoint; empty if the tensors lie there themselves.
        plan: fields of the adaptation plan that it reads.
        order: how it flattens the tokens of a Primus; empty if it has none.
        strict: prefixes below which it loads strictly.
        wants: names, or prefixes with a dot at the end, without which it stops or starts from random weights.
        strips: texts that it removes from names.
        lacks: parts of names of a Primus's encoder for which its network has no place, and which it drops silently.
    """

    commit: str
    files: tuple[str, ...]
    root: tuple[str, ...] = ("network_weights",)
    plan: tuple[str, ...] = ()
    order: str = ""
    strict: tuple[str, ...] = ()
    wants: tuple[str, ...] = ()
    strips: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()


_PLAN = ("architecture_plans", "pretrain_plan", "pretrain_num_input_channels", "recommended_downstream_patchsize")
_KEYS = ("key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe")

NNUNET = Contract(
    commit="0e49508",
    files=("adaptation_plan.json", "checkpoint_final.pth", "config.json"),
    root=("network_weights", "nnssl_adaptation_plan"),
    plan=(*_PLAN, *_KEYS),
    order="dhw",
    strict=("key_to_encoder", "key_to_stem"),
)
LATENTCAMPUS = Contract(commit="267c976", files=("checkpoint_final.pth",), order="dhw")
NNSSL = Contract(
    commit="7044864",
    files=("checkpoint_final.pth",),
    order="hdw",
    wants=("eva.", "down_projection.", "up_projection.", "decoder.", "decoder.pos_embed", "mask_token"),
)
CLASSIFICATION = Contract(
    commit="848e22e",
    files=("checkpoint_final.pth",),
    root=("network_weights", "nnssl_adaptation_plan"),
    plan=("pretrain_plan",),
    order="hdw",
    wants=("eva.", "down_projection."),
    strips=("encoder.",),
    lacks=(".gamma_1", ".gamma_2", ".attn.norm.weight", ".attn.norm.bias"),
)
FOMO = Contract(
    commit="d2df6d4",
    files=("fomo.pth",),
    root=(),
    wants=("model.encoder.stem.convs.0.conv.weight", "model.encoder.stem.convs.0.all_modules.0.weight"),
    strips=("_orig_mod.",),
)
FOMO_RESENC_L = 448
"""Tensors of its ResEnc-L below the head, each name counted; its head has two more."""

NNUNET_CLASSES = ("ResEncL", "PrimusS", "PrimusB", "PrimusM", "PrimusL")
"""Networks that nnU-Net builds by name; others by their arguments."""
NNUNET_BY_ARGUMENTS = {
    "PretrainedTrainer": ("ResidualEncoderUNet", "PlainConvUNet"),
    "PretrainedTrainer_Primusx": (
        "embed_dim",
        "patch_embed_size",
        "encoder_eva_depth",
        "encoder_eva_numheads",
        "scale_attn_inner",
        "init_values",
    ),
}
"""Class names that its first trainer takes, and arguments that its second one reads whatever the class is called."""
