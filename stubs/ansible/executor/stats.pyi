class AggregateStats:
    processed: dict[str, int]
    changed: dict[str, int]
    def summarize(self, host: str) -> dict[str, int]: ...
