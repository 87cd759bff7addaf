"""What every test shares: nothing but the rule that a missing tool is a failure with a sentence, never a skip."""

from __future__ import annotations
