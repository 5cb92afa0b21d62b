# Serves one GGUF over HTTP: llama.cpp behind OpenAI's protocol, no root, no model inside. Not a small image: all of
# Razor is in it, PyTorch too (docker/README.md has the numbers).
#
#   docker build -f docker/serve.Dockerfile -t razor-serve .
#   docker run --rm -p 127.0.0.1:8080:8080 -v "$PWD/runs/RUN/exports/gguf:/models:ro" razor-serve

FROM python:3.11-slim AS build
ARG TORCH_VERSION="2.13.0"
# The CPU build of PyTorch: the one of PyPI would bring gigabytes of CUDA, which serving never touches.
ARG TORCH_INDEX="https://download.pytorch.org/whl/cpu"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/razor
ENV PATH="/opt/razor/bin:$PATH"
RUN pip install --index-url "$TORCH_INDEX" "torch==${TORCH_VERSION}"
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY razor razor
COPY conf conf
RUN pip install -c constraints.txt '.[llama-cpp]'

FROM python:3.11-slim
# llama.cpp computes with OpenMP, whose library the wheel expects on the system
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home razor
COPY --from=build /opt/razor /opt/razor
ENV PATH="/opt/razor/bin:$PATH" PYTHONUNBUFFERED=1 RAZOR_CACHE=/tmp/razor
USER 10001
WORKDIR /models
VOLUME /models
EXPOSE 8080
STOPSIGNAL SIGTERM
# 503 while the model is loaded, 200 afterwards; asked from inside, without curl, and of no proxy that Docker's
# configuration may have put into the environment
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python", "-c", "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:8080/health', timeout=4)"]
ENTRYPOINT ["razor", "serve"]
CMD ["run=/models", "host=0.0.0.0", "port=8080"]
