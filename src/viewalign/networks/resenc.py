"""Residual-encoder U-Nets of dynamic-network-architectures, with blocks of the image zeroed as a mask."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import Tensor, nn

from viewalign.networks.backbone import Backbone, Encoded, Size
from viewalign.networks.layers import InstanceNorm3d, PlainDecoder, mean_vectors, replace_pools, run_stage
from viewalign.networks.masking import BlockMask, SparseMask, make_sparse, mask_images
from viewalign.networks.registry import unet_arguments


def build_unet(name: str, channels: int, outputs: int) -> ResidualEncoderUNet:
    """Build the U-Net of dynamic-network-architectures that a name stands for, with our own norms and pooling."""
    arguments = unet_arguments(name)
    arguments.update(conv_op=nn.Conv3d, norm_op=InstanceNorm3d, nonlin=nn.LeakyReLU)
    unet = ResidualEncoderUNet(input_channels=channels, num_classes=outputs, deep_supervision=False, **arguments)
    replace_pools(unet)
    return unet


class ResEncBackbone(Backbone):
    """A residual-encoder U-Net whose encoder stages are the dense features.

    Args:
        name: a key of `architectures.RESENC`.
        channels: image channels.
        block: side lengths of a masked block in voxels.
    """

    def __init__(self, name: str, channels: int = 1, block: Size = (16, 16, 16)) -> None:
        super().__init__()
        self.net = build_unet(name, channels, channels)
        for head in self.net.decoder.seg_layers[:-1]:
            # Heads of deep supervision, which the library always builds and pretraining never uses.
            head.requires_grad_(False)
        self.stage_channels = tuple(self.net.encoder.output_channels)
        self.decoder_channels = self.stage_channels[:-1]
        self.pooled_channels = sum(self.stage_channels)
        self.block = block
        depth = 2 ** (len(self.stage_channels) - 1)
        self.stride = (depth, depth, depth)
        self.seen: SparseMask | None = None

    def encode(self, images: Tensor, mask: BlockMask | None = None, drop: bool = True) -> Encoded:  # noqa: ARG002
        """Encode images; masked blocks are zeroed first."""
        encoder = self.net.encoder
        if self.seen is not None:
            size = (images.shape[2], images.shape[3], images.shape[4])
            self.seen.set(None if mask is None else mask.hidden, size, self.block)
        maps = [encoder.stem(images if mask is None else mask_images(images, mask.hidden, self.block))]
        for stage in encoder.stages:
            maps.append(self._run(partial(run_stage, stage), maps[-1]))
        return Encoded(maps=tuple(maps[1:]))

    def make_sparse(self) -> None:
        """Let the encoder compute from now on as if hidden blocks did not exist; see `networks.sparse`."""
        self.seen = make_sparse(self.net.encoder)

    def maps(self, encoded: Encoded) -> list[Tensor]:
        """Return the encoder's stages, finest first."""
        return list(encoded.maps)

    @property
    def map_channels(self) -> int:
        """Channels of all stages together."""
        return sum(self.stage_channels)

    def dense(self, encoded: Encoded) -> list[Tensor]:
        """Return the same."""
        return list(encoded.maps)

    def finest(self, encoded: Encoded) -> Tensor:
        """Return the decoder's last map, at the view's own resolution."""
        return self.decode(encoded)[0]

    @property
    def finest_channels(self) -> int:
        """Channels of the decoder's last map."""
        return self.decoder_channels[0]

    def voxel_head(self, outputs: int) -> nn.Module:
        """Build a 1 x 1 x 1 convolution."""
        return nn.Conv3d(self.finest_channels, outputs, 1)

    def plain_decoder(self) -> PlainDecoder:
        """Build one with the channels of the U-Net's own decoder."""
        return PlainDecoder(self.stage_channels[::-1])

    def pool(self, maps: Sequence[Tensor], shares: Sequence[Tensor]) -> Tensor:
        """Average each stage over its valid cells and concatenate; float32."""
        return mean_vectors(maps, shares)

    def decode(self, encoded: Encoded) -> list[Tensor]:
        """Return the U-Net decoder's stages, finest first."""
        decoder, maps = self.net.decoder, [encoded.maps[-1]]
        for up, stage, skip in zip(decoder.transpconvs, decoder.stages, encoded.maps[-2::-1], strict=True):
            maps.append(self._run(stage, torch.cat((up(maps[-1]), skip), 1)))
        return maps[:0:-1]

    def to_image(self, decoded: Sequence[Tensor]) -> Tensor:
        """Turn the finest map into an image."""
        image: Tensor = self.net.decoder.seg_layers[-1](decoded[0])
        return image

    def drop_decoder(self) -> None:
        """Remove the decoder."""
        self.net.decoder = None

    def freeze_unused(
        self,
        *,
        decode: bool = False,
        finest: bool = False,
        to_image: bool = False,
        fill: bool = False,  # noqa: ARG002
    ) -> None:
        """Freeze the decoder, or its last convolution."""
        self.net.decoder.stages.requires_grad_(decode or finest)
        self.net.decoder.transpconvs.requires_grad_(decode or finest)
        self.net.decoder.seg_layers[-1].requires_grad_(to_image)

    def grids(self, size: Size) -> list[Size]:
        """Return each stage's grid: the view halved from stage to stage."""
        return [(size[0] >> k, size[1] >> k, size[2] >> k) for k in range(len(self.stage_channels))]

    def blocks(self) -> list[nn.Module]:
        """Return the encoder's stages, then the decoder's where there is one."""
        decoder = self.net.decoder
        return [*self.net.encoder.stages, *(decoder.stages if decoder is not None else ())]
