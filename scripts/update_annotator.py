"""Train the sentence classifier that ships with mixprec and write it.

python scripts/update_annotator.py

Run it when the passages, the procedural traces or the features change; raise ``RULES`` in mixprec/traces/learned then.
"""

from __future__ import annotations

from mixprec.traces.learned import modelfile, training

if __name__ == "__main__":
    path = modelfile.shipped_path()
    modelfile.write(path, training.train(training.shipped()))
    print(f"{path}: {path.stat().st_size:,} bytes, {len(modelfile.read(path).names):,} features")
