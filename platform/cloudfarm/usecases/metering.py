"""What callers of services use: counted while it is being answered."""

from dataclasses import dataclass, field

from cloudfarm.usecases.routing import Route


@dataclass(slots=True)
class Use:
    """One request under way. Whoever began it ends it, come what may."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    ended: bool = False

    def count(self, *, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Charge tokens, before they are sent to the caller."""
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    def end(self) -> None:
        """Close it; a second time changes nothing."""
        self.ended = True


@dataclass(slots=True)
class Meter:
    """Begins and keeps uses."""

    under_way: list[Use] = field(default_factory=list)

    def begin(self, route: Route) -> Use:
        """Begin a request."""
        assert route.key_id  # noqa: S101 - whose it is
        use = Use()
        self.under_way.append(use)
        return use
