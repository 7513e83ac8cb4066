# The ranking service: what serves and nothing that trains (no torch). Built from locked, hashed packages.
# The digest is that of the tag's index for all platforms; how to move on to a newer one: docs/deploy.md.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${PYTHON_IMAGE} AS packages
COPY requirements/service.lock /tmp/service.lock
RUN python -m venv /opt/dlen \
 && /opt/dlen/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes --no-deps -r /tmp/service.lock \
 && /opt/dlen/bin/pip uninstall --yes --quiet pip

# Some loops are compiled (setup.py). What cannot be built is left out there, so that here it is asked for by name.
FROM ${PYTHON_IMAGE} AS compiled
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
COPY requirements/build.lock /tmp/build.lock
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes --no-deps -r /tmp/build.lock
WORKDIR /build
COPY setup.py /build/setup.py
COPY bundle /build/bundle
COPY fusion /build/fusion
COPY service /build/service
RUN python setup.py build_ext --inplace && ls bundle/compiled.*.so bundle/operators/native.*.so fusion/compiled.*.so service/wire/compiled_json.*.so service/wire/compiled_arrow.*.so

FROM ${PYTHON_IMAGE}
COPY --from=packages /opt/dlen /opt/dlen
WORKDIR /app
COPY cli.py /app/cli.py
COPY bundle /app/bundle
COPY fusion /app/fusion
COPY service /app/service
COPY --from=compiled /build/bundle/*.so /app/bundle/
COPY --from=compiled /build/bundle/operators/*.so /app/bundle/operators/
COPY --from=compiled /build/fusion/*.so /app/fusion/
COPY --from=compiled /build/service/wire/*.so /app/service/wire/
ENV PATH=/opt/dlen/bin:/usr/bin:/bin \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1
RUN useradd --system --uid 10001 --no-create-home dlen
USER 10001
EXPOSE 8080 9100
HEALTHCHECK --interval=5s --timeout=2s --start-period=30s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "cli"]
CMD ["serve", "--models", "/models", "--fusion", "/fusion", "--host", "0.0.0.0", "--port", "8080", "--metrics-host", "0.0.0.0", "--metrics-port", "9100"]
