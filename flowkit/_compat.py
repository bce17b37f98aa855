"""What older releases did differently, for reading what they saved.

While a checkpoint of an older release is restored, `restoring` holds the version that
wrote it, so that a default which has changed since is read as it was then.
"""

from contextvars import ContextVar


restoring: ContextVar[str | None] = ContextVar("restoring", default=None)
"""The version that wrote the checkpoint being restored; `None` outside of a restore."""
