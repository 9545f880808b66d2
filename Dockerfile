# vlp with CUDA. The work lies in the directory mounted at /work, owned by whoever starts the container:
#
#   docker build -t vlp .
#   docker run --rm -it --gpus all --shm-size 8g --user "$(id -u):$(id -g)" -v "$PWD:/work" vlp quickstart
#
# --shm-size: the loader's processes hand batches over in shared memory. Leave --gpus out to run on the CPU.
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv libcairo2 \
    && rm -rf /var/lib/apt/lists/*

# A virtual environment, because Ubuntu's pip refuses to install into the system's Python.
ENV VIRTUAL_ENV=/opt/vlp PATH=/opt/vlp/bin:$PATH PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/vlp
COPY . /src
RUN cd /src && pip install ".[svg,text]" && rm -rf /src

# Caches go to the home directory, which any --user may write.
RUN useradd --create-home vlp && chmod 1777 /home/vlp && install -d -o vlp /work
ENV HOME=/home/vlp
USER vlp
WORKDIR /work
ENTRYPOINT ["vlp"]
CMD ["--help"]
