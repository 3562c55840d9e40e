"""What a team waits for, in one run: a store read into tensors, and clips decoded by 1 and by 2 workers.

    python benchmarks/team.py [--rounds 3] [--clips 24]

Runs `loading.py` (beside a plain read of the same bytes) and `workers.py` (rate, and peak memory of each worker), one
after the other. The last line is JSON of both.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path


def part(script: str, *options: object) -> dict:
    """Run one benchmark, show what it prints, and take its last line."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, options)]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        sys.exit(f"{script} ended with status {process.returncode}")
    return json.loads(lines[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=24, help="to decode")
    arguments = parser.parse_args()
    loading = part("loading.py", "--rounds", arguments.rounds)
    workers = part("workers.py", "--rounds", arguments.rounds, "--clips", arguments.clips)
    print(json.dumps({"loading": loading, "workers": workers}))


if __name__ == "__main__":
    main()
