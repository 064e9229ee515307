"""What an encoder costs: its size, its work on one image, and how fast and in how much memory this machine does it.

Blank images of the encoder's own size. "flops" are multiply-accumulates of convolutions and matrix products, as papers'
tables count them. Latency is the median over single images, throughput the best of three batches; both of the network
alone, without reading or decoding. Memory is the weights and the activations alive at once: counted tensor by tensor on
the CPU (the allocator's own spare room is not in it), by the allocator's peak on CUDA. Timings are of the machine that
"about" names and of its other work.
"""

from understudy.evaluate.protocol import Display, Protocol, Requirements

DEVICE_TITLES = {
    pattern.format(device): title.format(device.upper())
    for device in ("cpu", "cuda")
    for pattern, title in (
        ("latency_ms {}", "Latency of one image, {}, ms"),
        (r"images_per_s@(\d+) {}", r"Images a second, {}, batch of \1"),
        (r"peak_memory_mb@(\d+) {}", r"Peak memory, {}, batch of \1, MB"),
    )
}


class Cost(Protocol):
    """Size, work, speed and memory of the network."""

    name = "cost"
    summary = "parameters, multiply-accumulates, latency, throughput, memory, file size"
    measure = "network_cost.network_cost"
    shared_settings = ("batch_size",)
    requirements = Requirements(images=False, labels=False)
    display = Display(
        title="Cost",
        sentence="Size, work for one image, and speed and memory of the network alone on the machine named under What "
        "was done.",
        source="multiply-accumulates as papers' tables count them",
        quoted=(r".+",),
        percent=False,
        figures={"parameters": "Parameters", "flops": "Multiply-adds", "file_mb": "File, MB"} | DEVICE_TITLES,
        less=(r"(?!images_per_s).+",),
    )
