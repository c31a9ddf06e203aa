"""What `gpt2 reproduce` runs in a process of its own, whose home is a fresh folder: the stages up to a model."""

from __future__ import annotations

import json
import sys

from cluster.home import configure
from flows.config import validate


def main() -> None:
    """Run the stages with the settings on the standard input, in the home that the environment names."""
    configure()
    config = validate(json.load(sys.stdin))
    from flows import early

    early.start(config)
    from cluster.connect import disconnect
    from flows.pipeline import STORY
    from flows.stage import without_tracebacks

    without_tracebacks()
    try:
        for stage in ("tokenize", "pretrain", *(["finetune"] if config.task_settings() else [])):
            STORY[stage](config)
    except ValueError as error:
        sys.exit(f"refused: {error}")
    finally:
        disconnect()


if __name__ == "__main__":
    main()
