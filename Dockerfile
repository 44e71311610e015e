# The image does what `make setup` does, in two stages. It was not built where it was written (no container engine); each of its
# commands was run in a fresh folder instead.
#
#   docker build -t mergeserve .
#   docker run -p 8000:8000 -v mergeserve-data:/data -v /path/to/model:/model:ro \
#     -e MERGESERVE_API_KEY=… -e MERGESERVE_ADMIN_KEY=… mergeserve serve /model --host 0.0.0.0
#   docker run -p 127.0.0.1:8000:8000 -v mergeserve-data:/data mergeserve     # the demo model, without keys

FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/mergeserve
COPY pyproject.toml constraints.txt Makefile README.md ./
COPY server server
COPY merging merging
COPY ensemble ensemble
RUN make setup TORCH_INDEX=${TORCH_INDEX}

FROM python:3.11-slim-bookworm
RUN useradd --create-home --uid 10001 mergeserve && mkdir /data && chown mergeserve /data
COPY --from=build /opt/mergeserve /opt/mergeserve
COPY examples /opt/mergeserve/examples
ENV PATH=/opt/mergeserve/.venv/bin:$PATH \
    MERGESERVE_CACHE_DIR=/data/cache \
    MERGESERVE_DATABASE_URL=sqlite:////data/mergeserve.db \
    HF_HOME=/data/huggingface
USER mergeserve
WORKDIR /home/mergeserve
VOLUME ["/data"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz')"]
ENTRYPOINT ["mergeserve"]
# Without keys the server only binds beyond loopback when told that this is meant; publish the port on loopback, as above.
CMD ["serve", "--demo", "--host", "0.0.0.0", "--insecure-bind"]
