# docker build --tag understudy .                            with CUDA packages; run it with --gpus all
# docker build --build-arg TORCH=cpu --tag understudy .      without: torch and torchvision alone then come without a hash
# docker run --rm --shm-size=8g --volume "$PWD:/data" understudy              the demo, into runs/demo
# docker run --rm --shm-size=8g --volume "$PWD:/data" understudy run --data photos ...
FROM python:3.12-slim

ARG TORCH=pypi

WORKDIR /opt/understudy
COPY pyproject.toml requirements-run.lock requirements-uv.lock README.md LICENSE ./
COPY recipes recipes
COPY src src
# Compiled once here: a container that may not write bytecode would compile torch at every start.
RUN pip install --no-cache-dir --require-hashes --requirement requirements-uv.lock \
    && if [ "${TORCH}" = pypi ]; then cp requirements-run.lock /tmp/run.lock; else \
      awk '/^[a-z]/ { skip = /^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z-]+)==/ } !skip' requirements-run.lock > /tmp/run.lock \
      && uv pip install --system --no-cache --no-deps --torch-backend "${TORCH}" \
        $(grep -oE '^torch(vision)?==[0-9.]+' requirements-run.lock); fi \
    && uv pip install --system --no-cache --compile-bytecode --no-deps --require-hashes --requirements /tmp/run.lock \
    && uv pip install --system --no-cache --compile-bytecode --no-deps --no-build-isolation . \
    && useradd --create-home understudy \
    && install --directory --owner understudy /data

USER understudy
WORKDIR /data
ENTRYPOINT ["understudy"]
CMD ["demo"]
