"""Checking a GPU: parity with the CPU, step time, memory, data wait."""
