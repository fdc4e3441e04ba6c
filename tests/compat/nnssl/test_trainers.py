"""The trainers of the published command lines, against the table of their figures."""

import pytest

from viewalign.compat.nnssl.trainers import NETWORKS, PRIMUS, RESENC, resolve_trainer
from viewalign.errors import UserError
from viewalign.recipes.loading import load

EPOCH = 250
CUBE, BIG = (128, 128, 128), (160, 160, 160)

# name: view size, batch, lr, epochs, warm-up, mask ratio, EMA, (reconstruction, consistency, contrast), kind, cells
TABLE = {
    "AlignedMAE128Trainer": (CUBE, 4, 1e-2, 250, 0, 0.75, 0.995, (1, 0.5, 0.1), "cosine", 7),
    "AlignedMAETrainer": (CUBE, 4, 1e-2, 1000, 0, 0.75, 0.995, (5, 0.5, 0.1), "cosine", 7),
    "AlignedMAELR5Trainer": (CUBE, 4, 5e-3, 1000, 0, 0.75, 0.995, (5, 0.5, 0.1), "cosine", 7),
    "AlignedMAEFTTrainer": (CUBE, 4, 1e-2, 250, 0, 0.75, 0.995, (5, 1, 0.1), "cosine", 7),
    "AlignedMAEFTNoConTrainer": (CUBE, 4, 1e-2, 250, 0, 0.75, 0.995, (5, 1, 0), "cosine", 7),
    "GramAlignedMAEFTNoConTrainer": (CUBE, 4, 1e-2, 250, 0, 0.75, 0.995, (5, 2, 0), "gram", 7),
    "GramAlignedMAEFTConTrainer": (CUBE, 4, 1e-2, 250, 0, 0.75, 0.995, (5, 2, 0.1), "gram", 7),
    "AlignedConConMAETrainer": (CUBE, 4, 5e-3, 1000, 0, 0.75, 0.995, (5, 0.5, 0.1), "nt_xent", 7),
    "AlignedConConMAEFTTrainer": (CUBE, 4, 1e-2, 250, 0, 0.75, 0.995, (5, 0.2, 0.1), "nt_xent", 7),
    "ConMAETrainer": (CUBE, 4, 5e-3, 1000, 0, 0.75, 0.995, (5, 0, 0.1), None, None),
    "ConMAEFTTrainer": (CUBE, 4, 1e-2, 250, 0, 0.75, 0.995, (5, 0, 0.1), None, None),
    "ConMAEFTAnisoTrainer": ((256, 256, 32), 4, 1e-2, 250, 0, 0.75, 0.995, (5, 0, 0.1), None, None),
    "ConMAEFTAnisoB16Trainer": ((128, 128, 32), 16, 1e-2, 250, 0, 0.75, 0.995, (5, 0, 0.1), None, None),
    "AlignedAETrainer": (BIG, 2, 5e-3, 1000, 0, 0.0, 0.0, (5, 0.5, 0), "cosine", 7),
    "AlignedAEFTTrainer": (BIG, 2, 5e-3, 250, 0, 0.0, 0.0, (5, 0.5, 0), "cosine", 7),
    "AlignedMAEEvaTrainer": (BIG, 4, 3e-4, 500, 10, 0.75, 0.995, (5, 0.5, 0.1), "cosine", 7),
    "AlignedMAEFTLR3EvaTrainer": (BIG, 4, 3e-4, 150, 10, 0.75, 0.995, (5, 1, 0.1), "cosine", 7),
    "AlignedMAEFTNoConEvaLR3Trainer": (BIG, 4, 3e-4, 50, 5, 0.75, 0.995, (5, 1, 0), "cosine", 7),
    "GramAlignedMAEFTNoConEvaLR3Trainer": (BIG, 4, 3e-4, 50, 5, 0.75, 0.995, (5, 2, 0), "gram", 7),
    "GramAlignedMAEFTConEvaLR3Trainer": (BIG, 4, 3e-4, 50, 5, 0.75, 0.995, (5, 2, 0.1), "gram", 7),
    "ConMAEFTEvaLR3Trainer": (BIG, 4, 3e-4, 150, 10, 0.75, 0.995, (5, 0, 0.1), None, None),
    "AlignedConConMAEFTEvaTrainer": (BIG, 4, 3e-4, 150, 10, 0.75, 0.995, (5, 0.2, 0.1), "nt_xent", 5),
    "AlignedAEEvaTrainer": (BIG, 2, 3e-4, 500, 10, 0.0, 0.0, (5, 0.5, 0), "cosine", 7),
    "AlignedAEFTEvaTrainer": (BIG, 2, 3e-4, 150, 10, 0.0, 0.0, (5, 0.5, 0), "cosine", 7),
}
FLAT = (7, 7, 2)
THIN, THIN_SMALL = (256, 256, 32), (128, 128, 32)
# What differs further: which vectors pass the heads, and whose maps are compared.
TABLE |= {
    "AlignedMAEFTConAnisoTrainer": (THIN, 4, 1e-2, 250, 0, 0.75, 0.995, (5, 1, 0.1), "cosine", FLAT),
    "AlignedMAEFTConAnisoB16Trainer": (THIN_SMALL, 16, 1e-2, 250, 0, 0.75, 0.995, (5, 1, 0.1), "cosine", FLAT),
    "GramAlignedMAEFTNoConNoProjTrainer": (CUBE, 4, 1e-2, 250, 0, 0.75, 0.995, (5, 2, 0), "gram", 7),
    "GramAlignedMAEFTConNoProjTrainer": (CUBE, 4, 1e-2, 250, 0, 0.75, 0.995, (5, 2, 0.1), "gram", 7),
    "GramAlignedMAEFTConNoProjAnisoTrainer": (THIN, 4, 1e-2, 250, 0, 0.75, 0.995, (5, 2, 0.1), "gram", FLAT),
    "GramAlignedMAEFTConNoProjAnisoB16Trainer": (THIN_SMALL, 16, 1e-2, 250, 0, 0.75, 0.995, (5, 2, 0.1), "gram", FLAT),
    "FeatConDecAlignedMAEFTTrainer": (CUBE, 4, 5e-3, 250, 0, 0.75, 0.995, (5, 0.5, 0.1), "cosine", 7),
    "GramAlignedMAEFTNoConNoProjEvaLR3Trainer": (BIG, 4, 3e-4, 50, 5, 0.75, 0.995, (5, 2, 0), "gram", 7),
    "GramAlignedMAEFTConNoProjEvaLR3Trainer": (BIG, 4, 3e-4, 50, 5, 0.75, 0.995, (5, 2, 0.1), "gram", 7),
    "FeatConDecAlignedMAEFTEvaTrainer": (BIG, 4, 3e-4, 50, 5, 0.75, 0.995, (5, 0.5, 0.1), "cosine", 5),
}
OURS = {"MAETrainer", "MAEEvaTrainer"} | {f"Base{e}MAETrainer{b}" for e in ("", "Eva") for b in ("", "_BS8")}

SMALL_VIEW = (64, 64, 64)
OTHER_METHODS = {
    "SparkMAETrainer": ("spark", BIG),
    "SimMIMEvaTrainer": ("simmim", BIG),
    **{f"ModelGenesis{eva}Trainer": ("genesis", BIG) for eva in ("", "Eva")},
    **{f"VolumeFusion{eva}Trainer": ("fusion", BIG) for eva in ("", "Eva")},
    **{f"SimCLR{eva}Trainer": ("simclr", SMALL_VIEW) for eva in ("", "Eva")},
    **{f"VoCo{eva}Trainer": ("voco", SMALL_VIEW) for eva in ("", "Eva")},
    "PCRLv2Trainer": ("pcrlv2", CUBE),
    "GVSLTrainer": ("gvsl", BIG),
    **{f"SwinUNETR{eva}Trainer": ("swinunetr", BIG) for eva in ("", "Eva")},
}


def figures(recipe):
    terms, optim = recipe.objectives, recipe.optim
    weights = (terms.reconstruction_weight, terms.consistency_weight, terms.contrastive_weight)
    aligned = terms.consistency_weight > 0
    schedule = (optim.lr, recipe.steps / EPOCH, optim.warmup_steps / EPOCH)
    rates = (recipe.masking.ratio, recipe.teacher.momentum)
    cells = terms.cells[0] if len(set(terms.cells)) == 1 else terms.cells
    kind = (terms.consistency, cells) if aligned else (None, None)
    return (recipe.views.patch_size, recipe.batch, *schedule, *rates, weights, *kind)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_name_gives_the_figures_of_its_class(name):
    trainer = resolve_trainer(name)
    recipe = load(trainer.recipe, trainer.overrides)
    assert figures(recipe) == TABLE[name]
    assert recipe.network.name == ("primus-m" if "Eva" in name else "resenc-l")
    assert recipe.optim.name == ("adamw" if "Eva" in name else "sgd")
    assert recipe.objectives.reconstruction == "huber"
    assert recipe.heads.projector == ("pooled" if "NoProj" in name else "both")
    assert recipe.objectives.dense == ("decoder" if "FeatConDec" in name else "encoder")


@pytest.mark.slow
@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_every_name_s_settings_are_valid(network):
    for trainer in NETWORKS[network].values():
        assert load(trainer.recipe, trainer.overrides).network.name == network
        for override in trainer.overrides:
            assert load(trainer.recipe, [override]) != load(trainer.recipe), f"{override} says what holds already"


def test_every_class_is_there():
    assert {*RESENC, *PRIMUS} == {*TABLE, *OURS, *OTHER_METHODS, "BaseAlignedMAETrainer"}


@pytest.mark.parametrize("name", sorted(OTHER_METHODS))
def test_nnssl_s_other_methods(name):
    trainer = resolve_trainer(name)
    recipe = load(trainer.recipe, trainer.overrides)
    assert (recipe.method, recipe.views.patch_size) == OTHER_METHODS[name]
    assert recipe.network.name == ("primus-m" if "Eva" in name else "resenc-l")
    assert recipe.batch == (4 if recipe.method == "fusion" else 2)
    assert recipe.steps == 1000 * EPOCH


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("BaseEvaMAETrainer_BS8_192ps_4000ep", (8, (192, 192, 192), 4000)),
        ("BaseMAETrainer_BS16", (16, BIG, 1000)),
        ("SparkMAETrainer_BS6_ep2000", (6, BIG, 2000)),
        ("VolumeFusionTrainer_BS8", (16, BIG, 1000)),
    ],
)
def test_endings_are_settings(name, changes):
    trainer = resolve_trainer(name)
    recipe = load(trainer.recipe, trainer.overrides)
    assert (recipe.batch, recipe.views.patch_size, recipe.steps / EPOCH) == changes


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("BaseMAETrainer_BS8_EP4", {"batch": 8, "steps": 4 * EPOCH}),
        ("BaseMAETrainer_mask60", {"masking.ratio": 0.6}),
        ("BaseMAETrainer_MR45_BS8", {"masking.ratio": 0.45, "batch": 8}),
        ("SparkMAETrainer_block32", {"masking.block": (32, 32, 32)}),
        ("BaseEvaMAETrainer_maskratio90", {"masking.ratio": 0.9}),
        ("GVSLTrainer_lr1e4", {"optim.lr": 1e-4}),
    ],
)
def test_ablations_are_settings(name, changes):
    trainer = resolve_trainer(name)
    recipe = load(trainer.recipe, trainer.overrides)
    for key, value in changes.items():
        found = recipe
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value


@pytest.mark.parametrize("name", ["SimCLRTrainer_mask60", "BaseEvaMAETrainer_block8", "BaseMAETrainer_mask600"])
def test_an_ending_that_changes_nothing_there_is_rejected(name):
    with pytest.raises(UserError, match=name):
        resolve_trainer(name)


def test_an_unknown_ending_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"'BaseMAETrainer_BSx'.*BaseMAETrainer_BS8"):
        resolve_trainer("BaseMAETrainer_BSx")


def test_the_name_of_two_classes_needs_the_network():
    with pytest.raises(UserError, match=r"--network resenc-l or --network primus-m"):
        resolve_trainer("BaseAlignedMAETrainer")
    trainer = resolve_trainer("BaseAlignedMAETrainer", "primus-m")
    recipe = load(trainer.recipe, trainer.overrides)
    assert figures(recipe) == (BIG, 4, 1e-4, 250, 10, 0.75, 0.995, (1, 0.5, 0.1), "cosine", 7)
    trainer = resolve_trainer("BaseAlignedMAETrainer", "resenc-l")
    recipe = load(trainer.recipe, trainer.overrides)
    assert figures(recipe) == (BIG, 2, 1e-2, 250, 0, 0.75, 0.995, (1, 0.5, 0.1), "cosine", 7)
    assert recipe.heads.projector == "pooled"


def test_a_name_of_the_other_network_is_rejected():
    with pytest.raises(UserError, match=r"AlignedMAEFTTrainer.*resenc-l.*primus-m"):
        resolve_trainer("AlignedMAEFTTrainer", "primus-m")


@pytest.mark.parametrize(("name", "batch"), [("BaseMAETrainer", 2), ("BaseEvaMAETrainer_BS8", 8)])
def test_nnssl_s_own_mae(name, batch):
    trainer = resolve_trainer(name)
    recipe = load(trainer.recipe, trainer.overrides)
    terms = recipe.objectives
    assert (terms.reconstruction, terms.reconstruction_weight) == ("mse", 1.0)
    assert recipe.method == "mae"
    assert (recipe.views.patch_size, recipe.batch, recipe.steps) == (BIG, batch, 1000 * EPOCH)
    assert recipe.optim.warmup_steps == (50 * EPOCH if "Eva" in name else 0)
    photometric = recipe.views.photometric.model_dump()
    assert not any(value for key, value in photometric.items() if key.startswith("p_"))


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"'AlignedMAEFTrainer'.*AlignedMAEFTTrainer"):
        resolve_trainer("AlignedMAEFTrainer")
    with pytest.raises(UserError, match="AlignedMAEFTLR3EvaTrainer"):
        resolve_trainer("xyz")
