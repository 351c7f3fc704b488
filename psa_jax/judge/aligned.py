"""What a diagnosis needs of an alignment, which is made further up."""

from typing import Any, Protocol, runtime_checkable

from psa_jax.data.groups import Groups


@runtime_checkable
class Aligned(Protocol):
    """What `diagnose` reads of an alignment."""

    @property
    def coupling(self) -> Any:
        """The coupling, `[n, m]`."""
        ...

    @property
    def groups(self) -> Groups:
        """The plan behind it."""
        ...

    @property
    def scores_a(self) -> Any:
        """`[n, d]`."""
        ...

    @property
    def scores_b(self) -> Any:
        """`[m, d]`."""
        ...

    @property
    def member_scores_a(self) -> Any:
        """`[members, n, d]`, or None."""
        ...

    @property
    def member_scores_b(self) -> Any:
        """`[members, m, d]`, or None."""
        ...

    @property
    def names(self) -> tuple[str, ...] | None:
        """Of the treatments."""
        ...
