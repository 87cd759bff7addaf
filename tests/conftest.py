"""What every test shares. Nothing skips: what a test needs and does not find fails it, with a sentence."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# How long an example takes says something about the machine, which may be busy, and nothing about the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
