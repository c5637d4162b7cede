"""A process that a damaged tokenizer may crash: `python -m compressor.data.tokenizer_trial tokenizer.json`.

It opens the file and encodes a line, in little memory and for a short time; if the library refuses, the reason is on
stdout and the exit code is 3.
"""

from __future__ import annotations

import resource
import sys

_MEMORY = 8 << 30
_SECONDS = 100
_TEXT = "In 1984, Zoë's 3 quick brown foxes (and 12 dogs!) jumped over the lazy café: naïve? Yes - 100% so.\n"


def main(file: str) -> int:
    """Try the file; return the exit code."""
    _limit(resource.RLIMIT_AS, _MEMORY)
    _limit(resource.RLIMIT_CPU, _SECONDS)
    _limit(resource.RLIMIT_CORE, 0)
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(file)
        tokenizer.encode(_TEXT)
        tokenizer.encode(_TEXT, _TEXT, add_special_tokens=False)
        tokenizer.get_vocab(with_added_tokens=True)
        # What transformers does to it.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.add_special_tokens(["<trial>"])
        ids = tokenizer.encode_batch([_TEXT, ""])[0].ids
        tokenizer.decode(ids)
    except Exception as error:  # the library raises bare Exception
        sys.stdout.write(str(error) or type(error).__name__)
        return 3
    return 0


def _limit(what: int, most: int) -> None:
    soft, hard = resource.getrlimit(what)
    lowest = min(limit for limit in (most, soft, hard) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(what, (lowest, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
