"""What a check of a GPU should find."""

LOSS_DIFFERENCE = 1e-2
"""Largest relative difference between the losses of a run of six steps on a GPU and on a CPU, in float32."""

RESUME_DIFFERENCE = 1e-4
"""The same between a run and its resumption; 0 on a CPU, and on a GPU where its kernels are deterministic."""

DATA_WAIT = 0.01
"""Share of the time in which the GPU waits for data, with four workers."""

RATE_SHARE = {"cva-resenc-l": 0.23, "cva-primus-m": 0.40}
"""Share of the measured bf16 matrix products that a step should reach, compiled: 0.25 s and 0.40 s on an H100.

Worked out from operations and bytes, not measured.
"""

WAITS = 1
"""Most times a step in which the CPU waits for the GPU: none is known, and the first step reads its norm at once."""
