"""The account of a source: every file is read, left out or refused."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.data.prepare.sharding import Outcome
from pipeline.data.prepare.source_images import join_examples, printable

_TITLE = "files of the source"


def account_lines(outcome: Outcome) -> Iterator[str]:
    """A table of the files of a source, then notes and warnings, line by line."""
    stored = sum(shard.samples for shard in outcome.index.shards)
    rows = [("read", stored, "")]
    left_out = outcome.left_out
    for reason, count in sorted(left_out.counts.items(), key=lambda item: -item[1]):
        examples = join_examples(left_out.examples[reason], count)
        rows.append((f"left out: {reason}", count, examples))
    if outcome.bad:
        earlier = outcome.bad - len(outcome.skipped)
        where = f"see above; {earlier:,} in an earlier attempt" if earlier else "see above"
        rows.append(("refused: it cannot be used as an image", outcome.bad, where))
    width = max(len(_TITLE), *(len(title) for title, _, _ in rows))
    yield f"{_TITLE:<{width}} {'number':>10}"
    for title, count, examples in rows:
        yield f"{title:<{width}} {count:>10,}  {examples}".rstrip()
    yield from (f"note: {printable(note)}" for note in outcome.notes)
    yield from (f"warning: {printable(warning)}" for warning in outcome.warnings)
