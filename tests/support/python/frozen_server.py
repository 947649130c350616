"""A server for paired timing: one request at a time, on a copy of a state directory, with nothing promoted meanwhile."""
import shutil

import foretoken_server


class FrozenServer(foretoken_server.Server):
    """state_dir: copied to `folder`, not touched; None: begins with nothing."""

    def __init__(self, binary, model, state_dir, folder, *flags):
        if state_dir:
            shutil.copytree(state_dir, folder)
        super().__init__(binary, "--max-num-seqs", "1", "--control-fraction", "0", "--plain-fraction", "0", *flags,
                         state_dir=str(folder), model=model)

    def __enter__(self):
        super().__enter__()
        self.post("/v1/speculator/freeze", {})
        return self
