"""What several tests of training use; the fixtures are in tests/made/run_fixtures.py."""

from run_fixtures import TINY, smooth_volumes, tiny_network

__all__ = ["TINY", "smooth_volumes", "tiny_network"]
