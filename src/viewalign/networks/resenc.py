"""Residual-encoder U-Nets of dynamic-network-architectures; masked blocks of the image are set to zero."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import Tensor, nn

from viewalign.networks.backbone import Backbone, Encoded
from viewalign.networks.layers import InstanceNorm3d, PlainDecoder, replace_pools, run_stage
from viewalign.networks.masking import BlockMask, SparseMask, make_sparse, mask_images
from viewalign.networks.registry import unet_arguments
from viewalign.utils.pooling import masked_mean
from viewalign.utils.shapes import Size, spatial_size


def build_unet(name: str, channels: int, outputs: int) -> ResidualEncoderUNet:
    """Build the U-Net of a name with this package's norms and pooling."""
    arguments = unet_arguments(name)
    arguments.update(conv_op=nn.Conv3d, norm_op=InstanceNorm3d, nonlin=nn.LeakyReLU)
    unet = ResidualEncoderUNet(input_channels=channels, num_classes=outputs, deep_supervision=False, **arguments)
    replace_pools(unet)
    return unet


class ResEncBackbone(Backbone):
    """A residual-encoder U-Net, whose encoder stages are the dense features; methods are documented in `Backbone`.

    Args:
        name: a key of `registry.RESENC`.
        channels: image channels.
        block: (D, H, W) of a masked block in voxels.
    """

    def __init__(self, name: str, channels: int = 1, block: Size = (16, 16, 16)) -> None:
        super().__init__()
        self.net = build_unet(name, channels, channels)
        for head in self.net.decoder.seg_layers[:-1]:
            # Heads of deep supervision, which the library always builds and pretraining never uses.
            head.requires_grad_(False)
        self.stage_channels = tuple(self.net.encoder.output_channels)
        self.decoder_channels = self.stage_channels[:-1]
        self.finest_channels = self.stage_channels[0]
        self.pooled_channels = self.map_channels = sum(self.stage_channels)
        self.block = block
        depth = 2 ** (len(self.stage_channels) - 1)
        self.stride = (depth, depth, depth)
        self.sparse_mask: SparseMask | None = None

    def encode(self, images: Tensor, mask: BlockMask | None = None, drop_tokens: bool = True) -> Encoded:  # noqa: ARG002
        encoder = self.net.encoder
        if self.sparse_mask is not None:
            self.sparse_mask.set(None if mask is None else mask.hidden, spatial_size(images), self.block)
        maps = [encoder.stem(images if mask is None else mask_images(images, mask.hidden, self.block))]
        for stage in encoder.stages:
            maps.append(self._run(partial(run_stage, stage), maps[-1]))
        return Encoded(maps=tuple(maps[1:]))

    def make_sparse(self) -> None:
        """Make the encoder ignore masked blocks; see `masking.make_sparse`."""
        self.sparse_mask = make_sparse(self.net.encoder)

    def maps(self, encoded: Encoded) -> list[Tensor]:
        return list(encoded.maps)

    dense = maps

    def finest(self, encoded: Encoded) -> Tensor:
        return self.decode(encoded)[0]

    def voxel_head(self, outputs: int) -> nn.Module:
        return nn.Conv3d(self.finest_channels, outputs, 1)

    def plain_decoder(self) -> PlainDecoder:
        return PlainDecoder(self.stage_channels[::-1])

    def pool(self, maps: Sequence[Tensor], valid: Tensor) -> Tensor:
        return masked_mean(maps, valid)

    def decode(self, encoded: Encoded) -> list[Tensor]:
        decoder, maps = self.net.decoder, [encoded.maps[-1]]
        for up, stage, skip in zip(decoder.transpconvs, decoder.stages, encoded.maps[-2::-1], strict=True):
            maps.append(self._run(partial(run_stage, stage), torch.cat((up(maps[-1]), skip), 1)))
        return maps[:0:-1]

    def to_image(self, decoded: Sequence[Tensor]) -> Tensor:
        image: Tensor = self.net.decoder.seg_layers[-1](decoded[0])
        return image

    def drop_decoder(self) -> None:
        self.net.decoder = None

    def keep_encoder(self) -> None:
        self.drop_decoder()

    def freeze_unused(
        self,
        *,
        decode: bool = False,
        finest: bool = False,
        to_image: bool = False,
        fill: bool = False,  # noqa: ARG002
    ) -> None:
        self.net.decoder.stages.requires_grad_(decode or finest)
        self.net.decoder.transpconvs.requires_grad_(decode or finest)
        self.net.decoder.seg_layers[-1].requires_grad_(to_image)

    def grids(self, size: Size) -> list[Size]:
        return [(size[0] >> k, size[1] >> k, size[2] >> k) for k in range(len(self.stage_channels))]

    def blocks(self) -> list[nn.Module]:
        decoder = self.net.decoder
        return [*self.net.encoder.stages, *(decoder.stages if decoder is not None else ())]
