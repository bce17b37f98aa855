"""Flow matching in JAX.

A flow is a network, a path and a prediction; a loss trains it, a solver samples it.
"""

from jaxtyping import install_import_hook as _install_import_hook


# Stays installed, so that the namespaces which are loaded on first use are checked too.
_install_import_hook("flowkit", "beartype.beartype")
