"""The worker process: `python -m workers`."""

import gc

# Imports make many objects and hardly a reference cycle: without the collector they take a tenth to a fifth less.
# `shared.process.settle` switches it on.
gc.disable()

from workers.main import main  # noqa: E402

main()
