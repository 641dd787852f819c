"""The error that a person needs to read, out of the groups that tasks put around it."""


def find_cause(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error inside nested groups."""
    first = errors.exceptions[0]
    return find_cause(first) if isinstance(first, BaseExceptionGroup) else first
