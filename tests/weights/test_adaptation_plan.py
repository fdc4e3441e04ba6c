"""Plans of the published networks carry the names that nnU-Net resolves by itself."""

import json

import pytest

from viewalign.weights import adaptation_plan


@pytest.mark.parametrize(
    ("network", "preset", "encoder", "stem", "positions"),
    [
        ("resenc-l", "ResEncL", "encoder.stages", "encoder.stem", None),
        ("primus-m", "PrimusM", "eva", "down_projection", "eva.pos_embed"),
    ],
)
def test_published_networks_are_named_as_presets(network, preset, encoder, stem, positions):
    plan = adaptation_plan.adaptation_plan(network, 1, (160, 160, 160), (1.0, 1.0, 1.0), False, "viewalign_cva")
    expected = {"arch_class_name": preset, "arch_kwargs": None, "arch_kwargs_requiring_import": None}
    assert plan["architecture_plans"] == expected
    assert (plan["key_to_encoder"], plan["key_to_stem"], plan["key_to_lpe"]) == (encoder, stem, positions)
    assert plan["recommended_downstream_patchsize"] == [160, 160, 160]
    configuration = plan["pretrain_plan"]["configurations"]["onemmiso"]
    assert configuration["data_identifier"] == "nnsslPlans_onemmiso"
    assert configuration["use_mask_for_norm"] == [False]


def test_plans_are_plain_json():
    plan = adaptation_plan.adaptation_plan("primus-xs", 2, (32, 32, 32), None, True, "x")
    assert json.loads(json.dumps(plan)) == plan
    configuration = plan["pretrain_plan"]["configurations"]["noresample"]
    assert configuration["spacing"] is None
    assert configuration["use_mask_for_norm"] == [True]
    assert plan["pretrain_plan"]["original_median_spacing_after_transp"] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("trainer", "kinds"), [("viewalign_mae", 2), ("viewalign_hdw_mae", 2), ("nnssl_mae", 0), ("mae", 0)]
)
def test_only_weights_of_this_package_cite_its_methods(trainer, kinds):
    assert len(adaptation_plan.citations_of(trainer)) == kinds
