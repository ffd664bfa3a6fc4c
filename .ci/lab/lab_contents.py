"""Notebooks are not *unsaved* as soon as they are opened: `make lab` starts JupyterLab with this reader.

A committed notebook names no version of Python and no display name of a kernel; JupyterLab writes both into every
notebook that it opens, and then takes it for changed. Here they are added while a file is read, as the kernel would
have them, and taken away when it is written, so that what is committed stays clean.
"""

import platform
import sys

from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from nbdev.clean import clean_nb

LANGUAGE = {
    "codemirror_mode": {"name": "ipython", "version": sys.version_info[0]},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
    "version": platform.python_version(),
}


class Contents(AsyncLargeFileManager):
    "Files as they are, notebooks with what JupyterLab adds to them."

    async def get(self, path, content=True, *args, **options):
        model = await super().get(path, content, *args, **options)
        if model["type"] == "notebook" and model["content"]:
            metadata = model["content"]["metadata"]
            name = metadata.get("kernelspec", {}).get("name")
            if name == "python3":  # the kernel of the environment that this server runs in
                try:
                    spec = KernelSpecManager().get_kernel_spec(name)
                except NoSuchKernel:
                    return model
                metadata["kernelspec"] = {"display_name": spec.display_name, "language": spec.language, "name": name}
                metadata["language_info"] = LANGUAGE
        return model

    async def save(self, model, path=""):
        if model.get("type") == "notebook" and model.get("content"):
            clean_nb(model["content"], allowed_cell_metadata_keys=["jupyter"])
        return await super().save(model, path)
