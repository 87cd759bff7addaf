# syntax=docker/dockerfile:1
# The embedded gateway in one container; its log lies in the volume /data. Give it longer to stop than it drains.
# Several on a broker: deploy/compose.yaml.
#
#     docker build -t sluicegate .
#     docker run -p 127.0.0.1:8000:8000 -v sluicegate:/data --stop-timeout 20 sluicegate

FROM python:3.12-slim AS build
WORKDIR /source
RUN python -m venv /opt/sluicegate
# The dependencies first: they change less often than the code, so the layer below is mostly cached.
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > dependencies.txt \
    && /opt/sluicegate/bin/pip install --no-cache-dir --requirement dependencies.txt
COPY . .
RUN /opt/sluicegate/bin/pip install --no-cache-dir --no-deps .

FROM python:3.12-slim
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin sluice \
    && install --directory --owner sluice --group sluice /data
COPY --from=build /opt/sluicegate /opt/sluicegate
ENV PATH="/opt/sluicegate/bin:$PATH"
USER sluice
VOLUME /data
EXPOSE 8000
# Not /readyz: a gateway whose broker is away still serves what it holds, and starting it again would cure nothing.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
# --insecure: a container has to listen on all of its addresses; who reaches them is for `docker run -p` to say.
CMD ["sluice", "serve", "--host", "0.0.0.0", "--insecure", "--data", "/data"]
