"""The demo: what it sees now, what it remembers, what it forgot, and a question to ask.

Started by ``vismem demo``. Gradio draws the controls; pictures and figures go over a socket of our
own, for which a picture is encoded once whoever watches, and dropped where somebody is slow.
"""

from __future__ import annotations

from .settings import BUDGETS, DemoSettings

__all__ = ["BUDGETS", "DemoSettings"]
