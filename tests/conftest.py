"""What every test shares. Nothing skips: what a test needs and does not find fails it, with a sentence."""

from __future__ import annotations
