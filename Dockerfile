# docker build --build-arg TORCH=cpu --tag understudy .      without CUDA packages
# docker build --build-arg TORCH=cu130 --tag understudy .    with them; run it with --gpus all
# docker run --rm --shm-size=8g --volume "$PWD:/data" understudy              the demo, into runs/demo
# docker run --rm --shm-size=8g --volume "$PWD:/data" understudy run --data photos ...
FROM python:3.12-slim

ARG TORCH=cpu

WORKDIR /opt/understudy
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY recipes recipes
COPY src src
# Compiled once here: a container that may not write bytecode would compile torch at every start.
RUN pip install --no-cache-dir uv==0.13.9 \
    && uv pip install --system --no-cache --compile-bytecode --torch-backend "${TORCH}" --constraint requirements.lock . \
    && useradd --create-home understudy \
    && install --directory --owner understudy /data

USER understudy
WORKDIR /data
ENTRYPOINT ["understudy"]
CMD ["demo"]
