"""The report room: run folders in, one self-contained HTML page out (`page.write_report`).

It reads config.toml, metrics.jsonl, student.json, evaluation.json and sample.npz, and nothing else: no model, no data
source, no torch. The page makes no request of any kind; its content policy forbids the browser to.
"""
