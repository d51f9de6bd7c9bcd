# The workstation in an image. `invoke build` passes what is needed; by hand: DOCKER_BUILDKIT=1 docker build --target runtime -t tunestation .
# What is inside, how large it is and how long it takes: docs/image.md.

# devel, for the nvcc of DeepSpeed's and Triton's kernels; 13.0 because torch is built with it and DeepSpeed tolerates no other minor version.
ARG BASE_IMAGE=nvidia/cuda:13.0.3-devel-ubuntu24.04
# sha256:... of the base, to build on exactly the same bytes again.
ARG BASE_DIGEST=

FROM ${BASE_IMAGE}${BASE_DIGEST:+@${BASE_DIGEST}} AS stack
# gcc and Python's headers serve at run time too: Triton compiles a launcher for each new kernel.
RUN --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    --mount=type=tmpfs,target=/var/log \
    apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates g++ libaio-dev python3 python3-dev python3-venv rsync tini \
    && apt-get clean \
    && rm -rf /var/cache/ldconfig/aux-cache
ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
COPY docker/requirements.lock /opt/tunestation/docker/
# Where pip downloads from, and the CA bundle it trusts, come from the host as secrets; neither is needed on an open network.
# DeepSpeed alone has no wheel, and its setup looks at torch: it comes last.
RUN --mount=type=cache,target=/root/.cache/pip,sharing=locked \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=ca \
    if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi \
    && python3 -m venv /opt/venv \
    && awk '/^[a-z]/ { kept = $0 !~ /^deepspeed==/ } kept' /opt/tunestation/docker/requirements.lock > /tmp/wheels.lock \
    && pip install --no-deps --only-binary :all: --require-hashes --requirement /tmp/wheels.lock \
    && pip install --no-deps --no-build-isolation --no-cache-dir --require-hashes --requirement /opt/tunestation/docker/requirements.lock \
    && rm /tmp/wheels.lock

FROM stack AS project
RUN mkdir -p /home/tune /volumes/models /volumes/datasets/hub /volumes/datasets/url /volumes/runs /volumes/cache \
    && chmod -R 1777 /home/tune /volumes
COPY LICENSE README.md pyproject.toml tasks.py /opt/tunestation/
COPY docker /opt/tunestation/docker
COPY recipes /opt/tunestation/recipes
COPY src /opt/tunestation/src
RUN python -m compileall -q /opt/tunestation/src \
    && python /opt/tunestation/docker/sbom.py > /opt/tunestation/sbom.cdx.json
# Everything is said here, not in the entry point: some providers replace that. What is compiled at run time (DeepSpeed's ops, kernels
# of Triton, QuACK, FlashAttention and Inductor) goes to the cache volume, and is compiled for the machine at hand once, not at each
# start. The library path has the driver's folders alone: torch shall find the CUDA libraries of the lock, not those of the base.
ENV TUNE_HOME=/volumes \
    TUNE_RUNNER=here \
    TUNE_LISTEN=0.0.0.0 \
    HOME=/home/tune \
    USER=tune \
    LOGNAME=tune \
    LANG=C.UTF-8 \
    PYTHONPATH=/opt/tunestation/src \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/volumes/cache/huggingface \
    XDG_CACHE_HOME=/volumes/cache \
    TORCH_EXTENSIONS_DIR=/volumes/cache/torch_extensions \
    TORCHINDUCTOR_CACHE_DIR=/volumes/cache/torchinductor \
    TRITON_CACHE_DIR=/volumes/cache/triton \
    QUACK_CACHE_DIR=/volumes/cache/quack \
    FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED=1 \
    FLASH_ATTENTION_CUTE_DSL_CACHE_DIR=/volumes/cache/flash_attention \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /opt/tunestation
EXPOSE 7860
ARG VERSION=unknown
ARG COMMIT=unknown
ARG LOCK_DIGEST=unknown
LABEL org.opencontainers.image.title=Tunestation \
      org.opencontainers.image.description="Repeatable fine-tuning of chat models" \
      org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$COMMIT \
      org.tunestation.lock=$LOCK_DIGEST
ENTRYPOINT ["tini", "-g", "--", "/opt/tunestation/docker/start.sh"]

# For providers that hand you a container: root, and an SSH server that takes keys only.
FROM project AS cloud
RUN --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    --mount=type=tmpfs,target=/var/log \
    apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends openssh-server tmux \
    && apt-get clean \
    && rm -rf /etc/ssh/ssh_host_* /var/cache/ldconfig/aux-cache
COPY docker/cloud/sshd.conf /etc/ssh/sshd_config.d/tunestation.conf
ENV HOME=/root USER=root LOGNAME=root
EXPOSE 22
ENTRYPOINT ["tini", "-g", "--", "/opt/tunestation/docker/start-cloud.sh"]
CMD ["sleep", "infinity"]

# For everyone else: any user will do; nothing is written outside of the volumes, /home/tune and /tmp.
FROM project AS runtime
USER 1000:1000
CMD ["invoke", "--list"]
