# mqttc-broker as a container image: two stages, the second without compiler, headers or pip, run by a user without rights.
#
#   docker build -t mqttc .
#   docker run -p 1883:1883 mqttc --listen tcp://0.0.0.0:1883 --set auth.anonymous=true
#   docker run -p 1883:1883 -v ./mqttc.toml:/etc/mqttc/mqttc.toml:ro mqttc --listen tcp://0.0.0.0:1883 --config /etc/mqttc/mqttc.toml
#
# TLS needs OpenSSL 3, the store SQLite; Debian's Python brings both with it.
# Without arguments it listens on all addresses and refuses anonymous clients from outside, as everywhere.
# BASE is any Debian with Python 3.11 or later. tools/build_image.sh builds and tries it with buildah.
ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libsqlite3-dev libssl-dev python3-dev python3-pip python3-venv
COPY . /src
RUN python3 -m venv /opt/mqttc \
    && /opt/mqttc/bin/pip install --no-cache-dir /src \
    && /opt/mqttc/bin/pip uninstall -y pip setuptools \
    && find /opt/mqttc -name '*.pxd' -delete

FROM ${BASE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /usr/share/doc /usr/share/man /usr/share/locale \
    && useradd --system --uid 1883 --user-group --home-dir /var/lib/mqttc --create-home --shell /usr/sbin/nologin mqttc
COPY --from=build /opt/mqttc /opt/mqttc
ENV PATH=/opt/mqttc/bin:$PATH PYTHONUNBUFFERED=1
USER mqttc
WORKDIR /var/lib/mqttc
EXPOSE 1883 8883 8080 14567/udp
STOPSIGNAL SIGTERM
ENTRYPOINT ["mqttc-broker"]
CMD ["--listen", "tcp://0.0.0.0:1883"]
