"""The report room: run folders in, one self-contained HTML page out (`page.write_report`).

It reads config.toml, metrics.jsonl, student.json, evaluation.json and sample.npz, and nothing else: no model, no data
source, no torch. How a protocol is shown stands in evaluation.json (`protocols.Displays`). The text of a page is a
template (`templates/`); the page makes no request of any kind, and its content policy forbids the browser to.
"""
