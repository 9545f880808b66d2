# vlp for nodes with NVIDIA GPUs. The work lies in the directory mounted at /work, owned by whoever starts the container:
#
#   docker build -t vlp .
#   docker run --rm -it --init --gpus all --ipc host --user "$(id -u):$(id -g)" -v "$PWD:/work" vlp quickstart
#
# --ipc host (or --shm-size 8g): the loader's processes, and NCCL's, hand data over in shared memory. Leave --gpus out to
# run on the CPU. All GPUs of a node, with time to save when it is stopped; several nodes need --network host, and those
# with InfiniBand --ulimit memlock=-1 --device /dev/infiniband (docs/clusters.md):
#
#   docker run --rm --init --gpus all --ipc host --stop-timeout 300 --user "$(id -u):$(id -g)" -v "$PWD:/work" \
#     --env PET_SHUTDOWN_TIMEOUT=240 --entrypoint torchrun vlp \
#     --standalone --nproc_per_node gpu -m vlp train recipe.yaml
#
# CUDA and NCCL come with torch's wheels, so that the smallest base will do: it says which drivers fit (580 and newer).
# The image is about 7 GB, 6.3 of them Python packages, of which torch with CUDA, NCCL and Triton are 5.4.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04

# A compiler and Python's headers are for Triton, which torch.compile calls: it builds small C modules at run time.
# DeepSpeed has nothing to build: the optimiser is torch's own. ibverbs: without it NCCL falls back to TCP, slow.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv python3-dev gcc g++ ibverbs-providers libcairo2 \
    && rm -rf /var/lib/apt/lists/*

# Any --user may write the home directory, where caches go; USER, because torch asks who it is to name one of them.
RUN useradd --create-home vlp && chmod 1777 /home/vlp && install -d -o vlp /work
ENV HOME=/home/vlp USER=vlp

# A virtual environment, because Ubuntu's pip refuses to install into the system's Python.
ENV VIRTUAL_ENV=/opt/vlp PATH=/opt/vlp/bin:$PATH PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/vlp

# What changes least comes first: a change of the code does not fetch torch again.
COPY pyproject.toml /src/
RUN cd /src && mkdir vlp data_tools recipes && touch README.md LICENSE vlp/__init__.py data_tools/__init__.py \
    && pip install ".[svg,text,deepspeed,s3]" && pip uninstall -y vlp
COPY . /src
RUN cd /src && pip install --no-deps . && rm -rf /src

USER vlp
WORKDIR /work
ENTRYPOINT ["vlp"]
CMD ["--help"]
