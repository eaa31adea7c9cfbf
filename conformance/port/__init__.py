"""A port: what its author writes, and how it is named, started, asked and served."""

from conformance.numbers.cache import cache_folder
from conformance.port.base import NOT_WRITTEN, Port, Skip
from conformance.port.protocol import Call
from conformance.question.collectives import Collectives
from reference import FEATURES

__all__ = ["FEATURES", "NOT_WRITTEN", "Call", "Collectives", "Port", "Skip", "cache_folder"]
