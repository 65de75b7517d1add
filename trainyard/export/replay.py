"""Score probes with base and adapter and with an export, as they lie on disk.

JSON on stdin: base, adapter, out and probes (`prompt` and `answer` as token ids); on stdout, for
`adapter` and `export`, what `trainyard.parity.reference.scores` gives.
"""

import gc
import json
import sys
from pathlib import Path

from peft import PeftModel

from trainyard.export.merge import is_whole, load
from trainyard.parity.reference import scores


def main() -> int:
    asked = json.load(sys.stdin)
    out, sys.stdout = sys.stdout, sys.stderr  # libraries print
    adapter = Path(asked["adapter"])
    if is_whole(adapter):
        model = load(adapter)
    else:
        model = PeftModel.from_pretrained(load(Path(asked["base"])), adapter)
    found = {"adapter": scores(model, asked["probes"])}
    del model
    gc.collect()
    found["export"] = scores(load(Path(asked["out"])), asked["probes"])
    json.dump(found, out)
    out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
