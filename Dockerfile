# deepjax for CPUs, or with ACCELERATOR=cuda12 or cuda13 for NVIDIA GPUs:
#
#     docker build -t deepjax .
#     docker build --build-arg ACCELERATOR=cuda12 -t deepjax:cuda12 .
#     docker run --rm -v "$PWD/runs:/runs" deepjax train --model cifar_resnet20 --output-dir /runs/a
#     docker run --rm --gpus all -v "$PWD/runs:/runs" deepjax:cuda12 train ...
FROM python:3.12-slim

ARG ACCELERATOR=""
WORKDIR /deepjax

COPY requirements.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements.lock

# CUDA's packages in the version of the locked JAX; they are not in the lock file.
RUN if [ -n "$ACCELERATOR" ]; then \
        pip install --no-cache-dir \
            "jax[$ACCELERATOR]==$(python -c 'import importlib.metadata as m; print(m.version("jax"))')"; \
    fi

COPY pyproject.toml README.md LICENSE ./
COPY deepjax deepjax
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
COPY experiments experiments

RUN useradd --create-home --uid 1000 deepjax && mkdir /runs && chown deepjax /runs
USER 1000
ENTRYPOINT ["deepjax"]
CMD ["--help"]
